package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// fleetFile has what matters here of the two files that say what instances run
// or should run: the answer of `agnesctl fleet status`, whose instances have a
// status, and the inventory fleet.yaml, whose instances have not.
type fleetFile struct {
	Defaults struct {
		Channel string `json:"channel" yaml:"channel"`
	} `json:"defaults" yaml:"defaults"`
	Include   []string         `json:"include" yaml:"include"`
	Instances *[]fleetInstance `json:"instances" yaml:"instances"`
}

type fleetInstance struct {
	Name   string `json:"name" yaml:"name"`
	URL    string `json:"url" yaml:"url"`
	Status string `json:"status" yaml:"status"`

	Version string `json:"version" yaml:"version"`
	Wanted  string `json:"wanted" yaml:"wanted"`
	Digest  string `json:"digest" yaml:"digest"`

	Pin     string `json:"pin" yaml:"pin"`
	Channel string `json:"channel" yaml:"channel"`
	Host    string `json:"host" yaml:"host"`
}

// readInUse reads the files of --in-use. What is neither kind of file is refused:
// a file that says nothing would let everything go.
func readInUse(paths []string) (release.InUse, error) {
	var all release.InUse
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return release.InUse{}, problem.Wrap(err, problem.Usage, "expected a file with what is in use at "+path, "agnesctl fleet status -f fleet.yaml -o json > "+path)
		}
		used, err := parseInUse(content)
		if err != nil {
			return release.InUse{}, problem.Wrap(err, problem.Invalid,
				fmt.Sprintf("expected the output of 'agnesctl fleet status -o json' or a fleet.yaml in %s, found something else", path),
				"agnesctl fleet status -f fleet.yaml -o json > "+path)
		}
		all.Merge(used)
	}
	return all, nil
}

func parseInUse(content []byte) (release.InUse, error) {
	var file fleetFile
	if bytes.HasPrefix(bytes.TrimSpace(content), []byte("{")) {
		if err := json.Unmarshal(content, &file); err != nil {
			return release.InUse{}, fmt.Errorf("read JSON: %w", err)
		}
	} else if err := yaml.Unmarshal(content, &file); err != nil {
		return release.InUse{}, fmt.Errorf("read YAML: %w", err)
	}
	if len(file.Include) > 0 {
		return release.InUse{}, fmt.Errorf("it includes other files, which are not read here; all of them together: agnesctl fleet list -f fleet.yaml -o json")
	}
	if file.Instances == nil {
		return release.InUse{}, fmt.Errorf("it has no list of instances")
	}
	var used release.InUse
	status := 0
	for i, one := range *file.Instances {
		if one.Name == "" {
			return release.InUse{}, fmt.Errorf("instance %d has no name", i+1)
		}
		if one.Status != "" {
			status++
			if err := one.running(&used); err != nil {
				return release.InUse{}, err
			}
			continue
		}
		if one.URL == "" && one.Host == "" && one.Pin == "" && one.Channel == "" {
			return release.InUse{}, fmt.Errorf("instance %s has neither a status nor anything of an inventory: url, host, pin, channel", one.Name)
		}
		used.Add(cmp.Or(one.Pin, one.Channel, file.Defaults.Channel), one.Name)
	}
	if status != 0 && status != len(*file.Instances) {
		return release.InUse{}, fmt.Errorf("%d of %d instances have a status", status, len(*file.Instances))
	}
	return used, nil
}

// running adds what an instance says that it runs, and what it should run.
func (f fleetInstance) running(used *release.InUse) error {
	if f.Digest != "" {
		if !release.IsDigest(f.Digest[lastAt(f.Digest):]) {
			return fmt.Errorf("instance %s has the digest %q, which is none", f.Name, f.Digest)
		}
		used.Add(f.Digest, f.Name)
	}
	used.Add(f.Version, f.Name)
	used.Add(f.Wanted, f.Name)
	if f.Digest == "" && f.Version == "" {
		used.Notes = append(used.Notes, fmt.Sprintf("%s is %s: what it runs is unknown, what it should run (%s) counts as in use.", f.Name, f.Status, cmp.Or(f.Wanted, "unknown")))
	}
	return nil
}

// lastAt is where a digest begins in "image@digest", or alone.
func lastAt(s string) int { return strings.LastIndex(s, "@") + 1 }
