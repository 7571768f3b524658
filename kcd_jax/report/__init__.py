"""Tables, figures and reports, read from the files that runs leave; nothing here trains or needs an accelerator."""
