// Package buildinfo says which build is running.
//
// The release workflow links the values in (-ldflags -X); a container may give
// them as AGNES_VERSION, RELEASE_CHANNEL and AGNES_COMMIT_SHA, which win; a
// plain `go build` falls back to what the Go toolchain recorded.
package buildinfo

import (
	"cmp"
	"runtime"
	"runtime/debug"
)

// Set at link time; see the Makefile.
var (
	version string
	channel string
	commit  string
)

// Info identifies a build.
type Info struct {
	Version string `json:"version"` // CalVer YYYY.MM.N, or "dev" for a build of no release
	Channel string `json:"channel"` // dev or stable
	Commit  string `json:"commit"`  // full revision, "unknown" where it was not recorded
	Go      string `json:"go"`
}

// Get returns the running build's identity; getenv is os.Getenv or a test's.
func Get(getenv func(string) string) Info {
	return Info{
		Version: cmp.Or(getenv("AGNES_VERSION"), version, "dev"),
		Channel: cmp.Or(getenv("RELEASE_CHANNEL"), channel, "dev"),
		Commit:  cmp.Or(getenv("AGNES_COMMIT_SHA"), commit, recordedCommit(), "unknown"),
		Go:      runtime.Version(),
	}
}

func recordedCommit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
