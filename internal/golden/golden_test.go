package golden_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/golden"
)

// spy records failures instead of failing.
type spy struct {
	testing.TB
	failed string
}

func (s *spy) Helper()      {}
func (s *spy) Name() string { return "Spy" }
func (s *spy) Errorf(format string, args ...any) {
	s.failed = fmt.Sprintf(format, args...)
}

func (s *spy) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	panic(s)
}

func compare(t *testing.T, path, got string) string {
	t.Helper()
	s := &spy{}
	func() {
		defer func() {
			if r := recover(); r != nil && r != any(s) {
				panic(r)
			}
		}()
		golden.Compare(s, path, []byte(got))
	}()
	return s.failed
}

func TestCompareFailsOnADifferenceAndNamesTheWayOut(t *testing.T) {
	t.Parallel()
	if flag.Lookup("update").Value.String() == "true" {
		t.Skip("with -update Compare writes and does not fail")
	}
	path := filepath.Join("testdata", "letters.golden")
	golden.Compare(t, path, []byte("a\nb\n"))
	if got := compare(t, path, "a\nc\n"); !strings.Contains(got, "-update") || !strings.Contains(got, `"c"`) {
		t.Errorf("a difference was reported as %q, want the line and the -update flag", got)
	}
	if got := compare(t, path, "a\nb"); got == "" {
		t.Error("a missing line break at the end was not noticed")
	}
	if got := compare(t, filepath.Join("testdata", "missing.golden"), ""); !strings.Contains(got, "-update") {
		t.Errorf("a missing file was reported as %q, want the -update flag", got)
	}
}

func TestScriptsRunProgramsInProcess(t *testing.T) {
	t.Parallel()
	echo := func(_ context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
		in, _ := io.ReadAll(stdin)
		fmt.Fprintf(stdout, "%v %s %s", args, getenv("GREETING"), in)
		fmt.Fprint(stderr, "noise")
		if len(args) > 0 && args[0] == "fail" {
			return 3
		}
		return 0
	}
	golden.Scripts(t, golden.Suite{Dir: "testdata/script", Programs: map[string]golden.Program{"echo3": echo}})
}
