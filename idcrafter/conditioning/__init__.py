"""One file a backbone's reference rule: how a cast becomes conditioning."""
