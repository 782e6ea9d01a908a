package proc_test

import (
	"strings"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/internal/proc"
)

func TestALivingProcessHasNotEnded(t *testing.T) {
	t.Parallel()
	name := proc.Name("ada@ops")
	if proc.Ended(name) || proc.Owner(name) != "ada@ops" {
		t.Fatalf("this very process is taken for dead: %s", name)
	}
}

func TestADeadProcessOfThisMachineHasEnded(t *testing.T) {
	t.Parallel()
	name := proc.Name("ada")
	fields := strings.Fields(name)
	fields[4] = "1]" // another start than that of the process
	if !proc.Ended(strings.Join(fields, " ")) {
		t.Fatalf("%v is taken for alive", fields)
	}
}

func TestNothingIsSaidOfProcessesElsewhere(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "ada", "ada [other-boot 1 1 1]", "ada [- - 1 1]"} {
		if proc.Ended(name) {
			t.Errorf("%q is taken for dead", name)
		}
	}
}
