"""The part of botwatch that runs on every gateway; everything else imports its kernel and its contracts."""
