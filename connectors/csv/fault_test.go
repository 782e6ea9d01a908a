package csv_test

import (
	"context"
	"encoding/base64"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/connectors/csv"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

func TestAFileThatChangesWhileItIsReadIsNotTaken(t *testing.T) {
	t.Parallel()
	changes := map[string]func(path string) error{
		"grown": func(path string) error {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("4\n")
			return err
		},
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".tmp", []byte("a\n9\n"), 0o644); err != nil {
				return err
			}
			return os.Rename(path+".tmp", path)
		},
		"gone": os.Remove,
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, map[string]string{"a.csv": "a\n1\n", "b.csv": "b\n1\n"})
			p.run()
			p.write(map[string]string{"a.csv": "a\n2\n", "b.csv": "b\n2\n"})
			_, res, err := connectors.Run(t.Context(), csv.New(p.opt), connectors.Request{}, p.extracts, func(s connectors.Progress) {
				if s.Table == "a" && s.Done == 0 {
					if err := change(filepath.Join(p.dir, "a.csv")); err != nil {
						t.Error(err)
					}
					change = func(string) error { return nil }
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if res.Failed["a"] == nil || !slices.Equal(res.Kept, []string{"a"}) || p.table("a") != "a BIGINT\n1" || p.table("b") != "b BIGINT\n2" {
				t.Errorf("Extract = %+v", res)
			}
			if name != "gone" && !strings.Contains(res.Failed["a"].Error(), "changed while it was being read; the next sync will try again") {
				t.Errorf("Failed = %v", res.Failed)
			}
		})
	}
}

func TestAFullDiskStopsTheSourceAndKeepsTheLastExtract(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=8m"); err != nil {
		if os.Geteuid() == 0 && os.Getenv("CI") != "" {
			t.Fatalf("root could not mount a tmpfs: %v", err)
		}
		t.Skipf("not run: a full disk needs the right to mount a tmpfs (%v)", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := newPlace(t, map[string]string{"a.csv": "a,b\n1,x\n"})
	p.extracts = filepath.Join(disk, "extracts")
	p.run()
	var big strings.Builder
	big.WriteString("a,b\n")
	rng := rand.NewChaCha8([32]byte{}) // text that does not shrink
	row := make([]byte, 96)
	for range 120_000 {
		_, _ = rng.Read(row)
		big.WriteString(base64.RawURLEncoding.EncodeToString(row) + ",x\n")
	}
	p.write(map[string]string{"a.csv": "a,b\n2,y\n", "b.csv": big.String()})
	_, _, err := connectors.Run(t.Context(), csv.New(p.opt), connectors.Request{}, p.extracts, nil)
	if !problem.Is(err, problem.NoSpace) || problem.As(err).Hint == "" {
		t.Fatalf("Run: %v, want no space", err)
	}
	if left, _ := filepath.Glob(filepath.Join(p.extracts, ".staging/*.next")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	if got := p.table("a"); got != "a BIGINT, b VARCHAR\n1|x" {
		t.Errorf("a = %q", got)
	}
	if err := os.Remove(filepath.Join(p.dir, "b.csv")); err != nil {
		t.Fatal(err)
	}
	if _, res := p.run(); len(res.Failed) > 0 || p.table("a") != "a BIGINT, b VARCHAR\n2|y" {
		t.Errorf("with space again: %+v", res)
	}
}

// Whatever a file holds, its neighbor is read and nothing crashes or leaks
// into the message.
func FuzzExtract(f *testing.F) {
	for _, seed := range []string{"a,b\n1,2\n", "a\n\"", "\xef\xbb\xbf", "a;b\n\"x\n", "{\"a\":", "\x1f\x8b\x00", "a,b\r1,2\r", "\"\"\"\n,,,\n", "a\tb\n\\,", "#\n#\n", "PAR1PAR1"} {
		for _, ext := range []string{"csv", "tsv", "ndjson", "json", "csv.gz", "parquet"} {
			f.Add(ext, seed)
		}
	}
	f.Fuzz(func(t *testing.T, ext, content string) {
		if !slices.Contains([]string{"csv", "tsv", "ndjson", "json", "csv.gz", "parquet"}, ext) {
			t.Skip()
		}
		p := newPlace(t, map[string]string{"t." + ext: content, "good.csv": "a\n1\n"})
		_, res, err := connectors.Run(context.Background(), csv.New(p.opt), connectors.Request{}, p.extracts, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.table("good"); got != "a BIGINT\n1" {
			t.Errorf("good = %q", got)
		}
		if err := res.Failed["t"]; err != nil && (problem.As(err).Hint == "" || problem.Is(err, problem.Internal)) {
			t.Errorf("Failed = %v", err)
		}
	})
}
