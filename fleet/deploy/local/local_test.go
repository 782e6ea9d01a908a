package local_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy/local"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy/shelltest"
)

func TestThisMachineIsAShell(t *testing.T) {
	t.Parallel()
	shelltest.Run(t, shelltest.Host{New: func(*testing.T) deploy.Shell { return local.New() }})
}

func TestAProcessLeftBehindDoesNotKeepACommandFromEnding(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	out, err := local.New().Run(ctx, deploy.Command{Args: []string{"sh", "-c", "sleep 20 & echo done; exit 4"}})
	if err != nil || out.Code != 4 || !bytes.Equal(out.Stdout, []byte("done\n")) {
		t.Errorf("%+v, %v, want code 4 and what it said", out, err)
	}
}
