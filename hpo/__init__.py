"""The service: command line, study files, samplers, controller, Ray Tune."""
