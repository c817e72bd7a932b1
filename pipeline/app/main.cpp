#include "pipeline/app/app.h"

int main(int argc, char** argv) { return pipeoptim::app::run(argc, argv); }
