package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
)

func TestScripts(t *testing.T) {
	t.Parallel()
	golden.Scripts(t, golden.Suite{
		Dir:      "testdata/script",
		Programs: map[string]golden.Program{"release-bot": run},
	})
}

func TestHelpOfTheRoot(t *testing.T) {
	t.Parallel()
	for file, args := range map[string]string{
		"help.golden":    "--help",
		"surface.golden": "surface",
		"docs.golden":    "docs",
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), strings.Fields(args), func(string) string { return "" }, strings.NewReader(""), &out, &errs)
		if code != 0 || errs.Len() > 0 {
			t.Errorf("%s: exit %d, %s", args, code, errs.String())
		}
		golden.Compare(t, filepath.Join("testdata", file), out.Bytes())
	}
}
