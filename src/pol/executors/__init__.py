"""Where training processes run. An executor only launches them; what they do is ``pol.replay.worker``."""
