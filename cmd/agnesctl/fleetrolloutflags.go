package main

import (
	"maps"
	"path/filepath"
	"slices"

	"github.com/spf13/pflag"

	"github.com/keboola/agnes-the-ai-analyst/fleet/rollout"
)

// keptFlags say how each host is deployed to and where the lease and the desired
// states are. They belong to the rollout, whoever goes on with it.
func keptFlags() []string {
	return []string{
		"verify", "key", "smoke", "schema", "wait", "deploy-soak", "drain-wait", "ready-wait", "without-backup", "retries",
		"desired-git", "local-lease",
	}
}

// keep writes the flags that were given into a rollout, and takes the others from
// it.
func (f *rolloutFlags) keep(r *rollout.Rollout) error {
	r.Flags = maps.Clone(r.Flags)
	if r.Flags == nil {
		r.Flags = map[string][]string{}
	}
	if f.flags.Changed("verify") {
		delete(r.Flags, "key") // another policy has its own keys
	}
	for _, name := range keptFlags() {
		flag := f.flags.Lookup(name)
		if flag.Changed {
			r.Flags[name] = flagValues(flag)
			continue
		}
		for _, value := range r.Flags[name] {
			if err := f.flags.Set(name, value); err != nil {
				return err
			}
		}
	}
	for i, file := range r.Flags["key"] { // it goes on from any folder
		var err error
		if r.Flags["key"][i], err = filepath.Abs(file); err != nil {
			return err
		}
	}
	return nil
}

func flagValues(flag *pflag.Flag) []string {
	if list, many := flag.Value.(pflag.SliceValue); many {
		return list.GetSlice()
	}
	return []string{flag.Value.String()}
}

// goAhead is the command that begins a rollout just as it was planned, without
// asking.
func (f *rolloutFlags) goAhead(r rollout.Rollout) string {
	line := "agnesctl fleet rollout --yes"
	if r.Of != "" {
		line += " --catch-up=" + shellQuote(r.Of)
	} else {
		line += " --digest " + r.Digest + " --tag " + shellQuote(r.Tag)
	}
	said := []string{"yes", "catch-up", "digest", "tag", "channel"}
	f.flags.Visit(func(flag *pflag.Flag) {
		if slices.Contains(said, flag.Name) {
			return
		}
		for _, value := range flagValues(flag) {
			line += " --" + flag.Name + "=" + shellQuote(value)
		}
	})
	return line
}
