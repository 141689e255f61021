"""The command line: reads arguments and environment, configures logging, prints results.  Nothing below it does."""
