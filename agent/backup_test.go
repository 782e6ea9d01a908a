package agent

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/agent/backup"
	"github.com/keboola/agnes-the-ai-analyst/agent/offsite"
	"github.com/keboola/agnes-the-ai-analyst/agent/settings"
)

func TestWhenTheLastBackupWasMade(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC()
	hours := func(n int) time.Time { return now.Add(time.Duration(n) * time.Hour) }
	const years = 10 * 365 * 24
	for _, tc := range []struct {
		since, last, want int // hours from now; a last of 0 is none
	}{
		{since: -9, last: 0, want: -9},
		{since: -9, last: -2, want: -2},
		{since: -2, last: -9, want: -2}, // brought here from an older instance
		{since: years, last: -2, want: -2},
		{since: years, last: 0, want: years},
		{since: -9, last: years, want: years},
	} {
		b := backups{since: hours(tc.since)}
		if tc.last != 0 {
			b.note(hours(tc.last), nil)
		}
		if _, base, _ := b.state(now); !base.Equal(hours(tc.want)) {
			t.Errorf("%+v: counted from %s", tc, base)
		}
	}
	at := func(hs ...int) (list []backup.Info) {
		for _, h := range hs {
			list = append(list, backup.Info{Manifest: backup.Manifest{CreatedAt: hours(h)}})
		}
		return list
	}
	if got := newest(at(years, years-1, -3, -5), now); !got.Equal(hours(-3)) {
		t.Errorf("the newest is of %s, want the one that is not of the future", got)
	}
	if got := newest(at(years), now); !got.Equal(hours(years)) {
		t.Errorf("the only one is of %s", got)
	}
	if got := newest(nil, now); !got.IsZero() {
		t.Errorf("the newest of none is of %s", got)
	}
}

func TestAClockThatJumpedDeletesNothing(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for before, want := range map[time.Time]time.Time{
		now.Add(-24 * time.Hour): now, now.AddDate(-10, 0, 0): now.AddDate(-10, 0, 0).Add(longestStep), now.AddDate(10, 0, 0): now, {}: now,
	} {
		if got := trusted(before, now); !got.Equal(want) {
			t.Errorf("after a backup of %s the time to delete by is %s, want %s", before, got, want)
		}
	}
}

func TestHealthSeesABackupOfTheFuture(t *testing.T) {
	t.Parallel()
	config, err := settings.Resolve(settings.Inputs{Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	i := &Instance{}
	i.config.Store(config)
	i.backups.since, i.backups.opened = time.Now().Add(-time.Hour), time.Now()
	i.backups.note(time.Now().AddDate(10, 0, 0), nil)
	if h := i.backupHealth(); h.Status != api.Degraded || !strings.Contains(h.Detail, "later than now") || h.Hint == "" {
		t.Errorf("%+v", h)
	}
	i.backups.note(time.Time{}, errors.New("no space"))
	if h := i.backupHealth(); h.Status != api.Degraded {
		t.Errorf("after a failure: %+v", h)
	}
	i.backups.note(time.Now(), nil)
	if h := i.backupHealth(); h.Status != api.Healthy {
		t.Errorf("after a backup: %+v", h)
	}
}

func TestHealthSeesACopyThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan struct{})
		defer close(hangs)
		i := &Instance{mirror: offsite.NewMirror(offsite.MirrorOptions{Local: func() ([]offsite.Local, error) {
			<-hangs
			return nil, errors.New("gone")
		}, Log: slog.New(slog.DiscardHandler)})}
		go func() { _ = i.mirror.Step(t.Context()) }()
		synctest.Wait()
		if h := i.offsiteHealth(api.ServiceHealth{Status: api.Healthy}); h.Status != api.Healthy {
			t.Errorf("at first: %+v", h)
		}
		<-time.After(7 * time.Hour)
		if h := i.offsiteHealth(api.ServiceHealth{Status: api.Healthy}); h.Status != api.Degraded || !strings.Contains(h.Detail, "late") || h.Hint == "" {
			t.Errorf("after seven hours: %+v", h)
		}
	})
}
