package offsite_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// disk is the backups of an instance and a target that can be in trouble.
type disk struct {
	t       *testing.T
	vault   offsite.Vault
	list    []offsite.Local
	trouble atomic.Pointer[problem.Error] // of the target
	bad     map[string]bool               // IDs of backups that are damaged
	put     []string
	log     bytes.Buffer
	opt     offsite.MirrorOptions
}

// troubled is a target whose Put fails while there is trouble.
type troubled struct {
	offsite.Target

	d *disk
}

// Put implements offsite.Target.
func (t troubled) Put(ctx context.Context, name string, size int64, r io.Reader) error {
	if p := t.d.trouble.Load(); p != nil {
		return p
	}
	t.d.put = append(t.d.put, strings.TrimSuffix(strings.TrimPrefix(name, "one/agnes-"), ".tar.zst.age"))
	return t.Target.Put(ctx, name, size, r)
}

func newDisk(t *testing.T, keep offsite.Keep) *disk {
	t.Helper()
	d := &disk{t: t, bad: map[string]bool{}}
	d.vault, _ = vault(t)
	d.vault.Target = troubled{d.vault.Target, d}
	recipient, _ := keyPair(t)
	d.opt = offsite.MirrorOptions{
		Vault: d.vault, Instance: "one", Recipients: recipients(t, recipient), Keep: keep, Log: slog.New(slog.NewTextHandler(&d.log, nil)),
		Local: func() ([]offsite.Local, error) { return slices.Clone(d.list), nil },
		Prove: func(_ context.Context, l offsite.Local) error {
			if d.bad[l.ID] {
				return problem.New(problem.Found, "The backup is damaged.", "Make another.")
			}
			return nil
		},
	}
	return d
}

func id(day int) string { return fmt.Sprintf("202604%02dT020000Z-aaaaaa", day) }

func (d *disk) add(day int) {
	d.list = append(d.list, offsite.Local{
		Dated: offsite.Dated{ID: id(day), Made: time.Date(2026, 4, day, 2, 0, 0, 0, time.UTC)}, Path: backupFile(d.t, 1000+day),
	})
}

func (d *disk) there(want ...int) {
	d.t.Helper()
	copies, err := d.vault.Copies(d.t.Context(), "one")
	var got, ids []string
	for _, c := range copies {
		got = append(got, c.ID)
	}
	for _, day := range want {
		ids = append(ids, id(day))
	}
	if err != nil || !slices.Equal(got, ids) {
		d.t.Errorf("at the target: %v, %v; want %v", got, err, ids)
	}
}

func TestAMirrorUploadsWhatIsMissingNewestFirst(t *testing.T) {
	t.Parallel()
	d := newDisk(t, offsite.Keep{Count: 3})
	for _, day := range []int{1, 2, 3, 4} {
		d.add(day)
	}
	m := offsite.NewMirror(d.opt)
	if err := m.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{id(4), id(3), id(2)}; !slices.Equal(d.put, want) {
		t.Errorf("uploaded %v, want %v: newest first, and none that would be deleted at once", d.put, want)
	}
	d.there(4, 3, 2)
	// Another process goes on: nothing is sent twice, the oldest goes.
	d.add(5)
	d.put = nil
	again := offsite.NewMirror(d.opt)
	if again.Has(id(4)) {
		t.Error("it knows of copies before it looked")
	}
	if err := again.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(d.put, []string{id(5)}) || !again.Has(id(5)) || !again.Has(id(4)) || again.Has(id(2)) {
		t.Errorf("uploaded %v; has 5 %v, 4 %v, 2 %v", d.put, again.Has(id(5)), again.Has(id(4)), again.Has(id(2)))
	}
	d.there(5, 4, 3)
	if s := again.Status(); s.Failed != nil || s.Waiting != 0 || s.InStep.IsZero() {
		t.Errorf("status = %+v", s)
	}
}

func TestAFailureKeepsWhatIsThereAndSaysSo(t *testing.T) {
	t.Parallel()
	d := newDisk(t, offsite.Keep{Count: 1})
	d.add(1)
	m := offsite.NewMirror(d.opt)
	if err := m.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.add(2)
	d.trouble.Store(offsite.Fault(offsite.CodeNoSpace, nil, "The disk is full.", "Free space."))
	for range 2 {
		if err := m.Step(t.Context()); !offsite.HasCode(err, offsite.CodeNoSpace) {
			t.Fatalf("step: %v", err)
		}
	}
	d.there(1) // the newest that is whole there stays, though the policy keeps one
	if s := m.Status(); s.Failed == nil || s.Waiting != 1 || s.Since.IsZero() || s.InStep.IsZero() {
		t.Errorf("status = %+v", s)
	}
	for _, l := range d.list {
		if _, err := os.Stat(l.Path); err != nil {
			t.Errorf("a local backup: %v", err)
		}
	}
	if !strings.Contains(d.log.String(), "Free space.") {
		t.Errorf("the log lacks the next step: %s", &d.log)
	}
	d.trouble.Store(nil)
	if err := m.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.there(2)
	if s := m.Status(); s.Failed != nil || s.Waiting != 0 {
		t.Errorf("status = %+v", s)
	}
}

// A backup that was made while the clock was years ahead is copied like any
// other; those after it are copied too, and nothing goes because of it.
func TestABackupOfTheFutureStopsNoCopy(t *testing.T) {
	t.Parallel()
	for _, keep := range []offsite.Keep{{Count: 2}, {Age: 48 * time.Hour}} {
		d := newDisk(t, keep)
		d.list = append(d.list, offsite.Local{
			Dated: offsite.Dated{ID: "20990101T020000Z-aaaaaa", Made: time.Date(2099, 1, 1, 2, 0, 0, 0, time.UTC)}, Path: backupFile(t, 1000),
		})
		m := offsite.NewMirror(d.opt)
		for _, day := range []int{1, 2} {
			d.add(day)
			if err := m.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if s := m.Status(); !m.Has(id(1)) || !m.Has(id(2)) || !m.Has("20990101T020000Z-aaaaaa") || s.Waiting != 0 {
			t.Errorf("keeping %+v: uploaded %v, status %+v", keep, d.put, s)
		}
	}
}

func TestADamagedBackupLeavesTheHostNeverAndStopsNoOther(t *testing.T) {
	t.Parallel()
	d := newDisk(t, offsite.Keep{Count: 9})
	for _, day := range []int{1, 2, 3} {
		d.add(day)
	}
	d.bad[id(3)] = true
	if err := os.Remove(d.list[1].Path); err != nil { // by retention, meanwhile
		t.Fatal(err)
	}
	m := offsite.NewMirror(d.opt)
	if err := m.Step(t.Context()); !problem.Is(err, problem.Found) {
		t.Errorf("step: %v", err)
	}
	d.there(1)
}

func TestAMirrorTriesAgainAndIsWoken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t, offsite.Keep{Count: 9})
		d.trouble.Store(offsite.Fault(offsite.CodeUnreachable, errors.New("down"), "Nobody answers.", "Look."))
		d.add(1)
		m := offsite.NewMirror(d.opt)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { m.Run(ctx); close(done) }()
		time.Sleep(10 * time.Minute) //nolint:forbidigo // of the bubble
		synctest.Wait()
		tries := strings.Count(d.log.String(), "could not all be copied")
		if tries < 3 || tries > 5 {
			t.Errorf("%d attempts in ten minutes of trouble, want a few", tries)
		}
		d.trouble.Store(nil)
		time.Sleep(time.Hour) //nolint:forbidigo // of the bubble
		synctest.Wait()
		d.there(1)
		d.add(2)
		m.Wake()
		synctest.Wait()
		d.there(2, 1)
		cancel()
		<-done
		if s := m.Status(); s.Failed != nil {
			t.Errorf("ending is no failure: %v", s.Failed)
		}
	})
}

func TestAMirrorKnowsWhatItsAttemptsAreAbout(t *testing.T) {
	t.Parallel()
	d := newDisk(t, offsite.Keep{Count: 9})
	d.add(1)
	d.opt.Prove = func(context.Context, offsite.Local) error {
		d.add(2) // made while the attempt is under way
		return problem.New(problem.Found, "The backup is damaged.", "Make another.")
	}
	m := offsite.NewMirror(d.opt)
	if err := m.Step(t.Context()); !problem.Is(err, problem.Found) {
		t.Fatalf("step: %v", err)
	}
	if s := m.Status(); !s.Knew[id(1)] || s.Knew[id(2)] {
		t.Errorf("it knew %v, want the one that was there when it began", s.Knew)
	}
	d.trouble.Store(offsite.Fault(offsite.CodeNoSpace, nil, "The disk is full.", "Free space."))
	if err := m.Step(t.Context()); err == nil {
		t.Fatal("the second attempt was to fail too")
	}
	if s := m.Status(); !s.Knew[id(2)] {
		t.Errorf("it knew %v, want both", s.Knew)
	}
}

func TestACopyThatDoesNotEndIsLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(t, offsite.Keep{Count: 9})
		d.add(1)
		hangs := make(chan struct{})
		d.opt.Prove = func(context.Context, offsite.Local) error { <-hangs; return nil }
		m := offsite.NewMirror(d.opt)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { m.Run(ctx); close(done) }()
		late := func(want bool, after time.Duration) {
			t.Helper()
			<-time.After(after)
			synctest.Wait()
			if s := m.Status(); s.Late(time.Now()) != want {
				t.Errorf("late %t, want %t: %+v", !want, want, s)
			}
		}
		late(false, time.Hour)
		late(true, 6*time.Hour)
		close(hangs)
		late(false, time.Minute)
		late(false, 24*time.Hour)
		cancel()
		<-done
		late(true, 7*time.Hour) // nobody looks any more
	})
}

func TestACopyThatWasDeletedThereIsSentAgain(t *testing.T) {
	t.Parallel()
	d := newDisk(t, offsite.Keep{Count: 9})
	d.add(1)
	m := offsite.NewMirror(d.opt)
	for range 2 {
		if err := m.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.there(1)
		if err := os.RemoveAll(filepath.Join(d.vault.URL.Path, "one")); err != nil {
			t.Fatal(err)
		}
	}
}
