package main

import (
	"path/filepath"

	"github.com/spf13/cobra"
)

// stateName is the folder of what is remembered of a fleet, beside its inventory.
const stateName = ".agnes-fleet"

// stateFlag declares --state and returns how to ask for the folder once the flags
// were read: the one that was named, or .agnes-fleet beside the inventory. An
// inventory from a git URL has it in the working directory.
func stateFlag(c *cobra.Command, f *fleetFlags) func() string {
	var dir string
	c.Flags().StringVar(&dir, "state", "", "folder of what is remembered of the fleet (default "+stateName+" beside the inventory)")
	_ = c.MarkFlagDirname("state")
	return func() string {
		switch {
		case dir != "":
			return dir
		case f.git != "":
			return stateName
		}
		return filepath.Join(filepath.Dir(f.file), stateName)
	}
}
