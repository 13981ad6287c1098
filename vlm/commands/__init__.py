"""One module per subcommand: read, call, write, report."""
