package buildinfo_test

import (
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/buildinfo"
)

func TestEnvironmentWinsOverTheBuild(t *testing.T) {
	t.Parallel()
	env := map[string]string{"AGNES_VERSION": "2026.04.3", "RELEASE_CHANNEL": "stable", "AGNES_COMMIT_SHA": "abc1234"}
	got := buildinfo.Get(func(k string) string { return env[k] })
	if got.Version != "2026.04.3" || got.Channel != "stable" || got.Commit != "abc1234" || got.Go == "" {
		t.Errorf("Get() = %+v, want the environment's values", got)
	}
}

func TestAPlainBuildIsADevBuild(t *testing.T) {
	t.Parallel()
	got := buildinfo.Get(func(string) string { return "" })
	if got.Version != "dev" || got.Channel != "dev" || got.Commit == "" {
		t.Errorf("Get() = %+v, want version and channel dev and some commit", got)
	}
}
