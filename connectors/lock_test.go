package connectors_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// TestHolder is not a test of its own: as a child process it holds a database
// open for writing until its standard input ends.
func TestHolder(t *testing.T) {
	file := os.Getenv("CONNECTORS_HOLD")
	if file == "" {
		return
	}
	db, err := duck.Open(t.Context(), file, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	fmt.Println("held")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

// A foreign container may hold its extract open at any time: Verify must
// neither fail by it nor keep it from working; ReadExtract must say what is up.
func TestVerifyLooksPastALock(t *testing.T) {
	t.Parallel()
	dir := foreign(t, connectors.MetaDDL(), goodMeta, goodOrders)
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHolder$")
	child.Env = append(os.Environ(), "CONNECTORS_HOLD="+filepath.Join(dir, connectors.ExtractFile))
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("the child said %q, %v", line, err)
	}
	_, err = connectors.ReadExtract(t.Context(), dir)
	if problem.As(err).WireCode() != "extract_open_elsewhere" {
		t.Errorf("ReadExtract: %v, want extract_open_elsewhere", err)
	}
	r, err := connectors.Verify(t.Context(), dir)
	if err != nil || !r.OK {
		t.Errorf("Verify = %+v, %v", r, err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}
