"""What the options of `milepost` itself do: tell the version, and let a shell complete commands."""

COMPLETE_VARIABLE = "_MILEPOST_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
