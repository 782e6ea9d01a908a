//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
)

// kills is how often TestNothingIsLostByKills kills the instance.
const kills = 200

// crashes is an instance that is killed again and again, with a ledger of what
// it has promised.
type crashes struct {
	t     *testing.T
	rng   *rand.Rand
	data  string // DATA_DIR
	csv   string // the source's folder
	p     *process
	token string

	syncTime time.Duration   // of a whole sync here and now
	stamp    int             // newest content of the source's files
	promised int             // stamp of the newest sync that was seen to succeed
	users    map[string]bool // created, answered with 201
	names    []string        // instance names in the order of the calls
	kept     int             // index of the one that must be there; only the newest may be instead
	jobs     map[string]bool // seen to succeed
	progress float64         // of the running sync, when last seen

	phases map[string]int // kills by what ran
	totals struct{ users, syncs, configs int }
}

// TestNothingIsLostByKills kills the instance at random moments while it syncs,
// publishes, is configured, is bootstrapped and makes its schema. After each
// kill it has to come back healthy with everything that it had answered for.
func TestNothingIsLostByKills(t *testing.T) {
	parallel(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := &crashes{t: t, rng: rand.New(rand.NewPCG(seed, 1)), phases: map[string]int{}}
	c.fresh()
	for n := range kills {
		// A new data directory now and then, so that the schema and the first
		// admin are made under fire too.
		if n > 0 && n%25 == 0 {
			c.p.stop()
			c.fresh()
			continue
		}
		switch n % 4 {
		case 0, 1:
			c.progress = 0
			c.killDuring("sync and publish", c.syncTime*3/2, c.sync)
			switch {
			case c.progress == 0:
				c.phases["- seen at its start"]++
			case c.progress < 0.9:
				c.phases["- seen extracting"]++
			case c.progress < 1:
				c.phases["- seen publishing"]++
			default:
				c.phases["- seen ended"]++
			}
		case 2:
			c.killDuring("configure", 60*time.Millisecond, c.configure)
		case 3:
			c.killDuring("create users", 60*time.Millisecond, c.createUsers)
		}
	}
	c.p.stop()
	total := 0
	for phase, n := range c.phases {
		if !strings.HasPrefix(phase, "-") {
			total += n
		}
	}
	if total < kills {
		t.Errorf("only %d kills happened, want at least %d", total, kills)
	}
	t.Logf("%d kills: %v; kept: %d users, %d syncs, %d configurations that had been answered for", total, c.phases, c.totals.users, c.totals.syncs, c.totals.configs)
}

// fresh begins with an empty data directory, killed several times while its
// schema is made and once while the first admin is.
func (c *crashes) fresh() {
	c.t.Helper()
	c.data, c.csv = c.t.TempDir(), c.t.TempDir()
	c.users, c.jobs, c.names, c.kept, c.stamp, c.promised = map[string]bool{}, map[string]bool{}, []string{"Agnes"}, 0, 0, 0
	for range 4 {
		p := launch(c.t, c.data)
		<-time.After(time.Duration(c.rng.Int64N(int64(120 * time.Millisecond)))) // the random moment is the subject
		p.kill()
		c.phases["schema"]++
	}
	c.p = start(c.t, c.data)
	c.killDuring("bootstrap", 80*time.Millisecond, func(ctx context.Context) {
		_ = c.p.call(ctx, "POST", "/auth/bootstrap", "", map[string]string{"email": adminEmail, "password": adminPassword}, nil)
	})
	c.p.must("POST", "/api/admin/configure", c.token, map[string]string{"data_source": "csv", "csv_dir": c.csv}, nil)
	began := time.Now()
	c.sync(c.t.Context())
	c.syncTime = time.Since(began)
	if c.promised != c.stamp {
		c.t.Fatalf("the first sync did not succeed\n%s", c.p.out)
	}
}

// killDuring runs an operation, kills the instance within the given time, and
// starts it again.
func (c *crashes) killDuring(phase string, within time.Duration, op func(context.Context)) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		op(ctx)
	}()
	<-time.After(time.Duration(c.rng.Int64N(int64(within)))) // the random moment is the subject
	c.p.kill()
	cancel()
	<-done
	c.phases[phase]++
	c.p = start(c.t, c.data)
	c.check(phase)
}

func (c *crashes) sync(ctx context.Context) {
	c.writeFiles()
	var trig api.SyncTriggered
	if c.p.call(ctx, "POST", "/api/sync/trigger", c.token, nil, &trig) != nil {
		return
	}
	for ctx.Err() == nil {
		var job api.Job
		if c.p.call(ctx, "GET", "/api/sync/jobs/"+trig.JobID, c.token, nil, &job) != nil {
			return
		}
		if job.Status == api.JobSucceeded {
			c.jobs[job.ID], c.promised, c.progress = true, c.stamp, 1
			c.totals.syncs++
			return
		}
		c.progress = job.Progress
	}
}

// writeFiles writes three related files that carry one stamp, large enough for
// a sync to last.
func (c *crashes) writeFiles() {
	c.t.Helper()
	c.stamp++
	for _, name := range []string{"a", "b", "c"} {
		path := filepath.Join(c.csv, name+".csv")
		f, err := os.CreateTemp(c.data, "source-*") // the move makes each change whole
		if err != nil {
			c.t.Fatal(err)
		}
		fmt.Fprintln(f, "id,stamp")
		for i := range 2000 {
			fmt.Fprintf(f, "%d,%d\n", i, c.stamp)
		}
		if err := f.Close(); err != nil {
			c.t.Fatal(err)
		}
		if err := os.Rename(f.Name(), path); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *crashes) configure(ctx context.Context) {
	for ctx.Err() == nil {
		name := fmt.Sprintf("Agnes %d", len(c.names))
		c.names = append(c.names, name)
		if c.p.call(ctx, "POST", "/api/admin/configure", c.token, map[string]string{"data_source": "csv", "instance_name": name}, nil) != nil {
			return
		}
		c.kept = len(c.names) - 1
		c.totals.configs++
	}
}

func (c *crashes) createUsers(ctx context.Context) {
	for ctx.Err() == nil {
		email := fmt.Sprintf("user%d@company.com", c.rng.Int64())
		if c.p.call(ctx, "POST", "/api/users", c.token, map[string]string{"email": email, "role": "analyst"}, nil) != nil {
			return
		}
		c.users[email] = true
		c.totals.users++
	}
}

// check holds the restarted instance to everything it has answered for.
func (c *crashes) check(phase string) {
	c.t.Helper()
	p := c.p
	var h api.Health
	p.must("GET", "/api/health", "", nil, &h)
	if h.Status == api.Unhealthy {
		c.t.Errorf("after a kill during %s: health = %+v\n%s", phase, h, p.out)
	}
	if h.SetupRequired {
		if len(c.users) > 0 || phase != "bootstrap" {
			c.t.Fatalf("after a kill during %s the admin is gone", phase)
		}
		p.must("POST", "/auth/bootstrap", "", map[string]string{"email": adminEmail, "password": adminPassword}, nil)
	}
	if phase == "bootstrap" {
		var tok api.TokenResponse
		p.must("POST", "/auth/token", "", map[string]string{"email": adminEmail, "password": adminPassword}, &tok)
		c.token = tok.AccessToken
		return
	}

	var users api.Users
	p.must("GET", "/api/users", c.token, nil, &users)
	have := map[string]bool{}
	for _, u := range users.Users {
		have[u.Email] = true
	}
	for email := range c.users {
		if !have[email] {
			c.t.Errorf("after a kill during %s: the user %s, whose creation was answered, is lost", phase, email)
		}
	}

	var cfg api.Config
	p.must("GET", "/api/admin/config", c.token, nil, &cfg)
	name, _ := cfg.Value("instance_name")
	switch newest := len(c.names) - 1; name {
	case c.names[newest]:
		c.kept = newest
	case c.names[c.kept]:
	default:
		c.t.Errorf("after a kill during %s: instance_name = %q, want %q or %q, which was being stored", phase, name, c.names[c.kept], c.names[newest])
	}

	var status api.SyncStatus
	p.must("GET", "/api/sync/status", c.token, nil, &status)
	if status.Running != nil {
		c.t.Errorf("after a kill during %s: a job still reads as running: %+v", phase, status.Running)
	}
	for _, j := range status.Jobs {
		if c.jobs[j.ID] && j.Status != api.JobSucceeded {
			c.t.Errorf("after a kill during %s: job %s was seen to succeed and reads %s", phase, j.ID, j.Status)
		}
	}
	c.checkTables(phase)
}

// checkTables proves that the published tables come from one whole sync, not
// older than the last one that was seen to succeed.
func (c *crashes) checkTables(phase string) {
	c.t.Helper()
	var answer api.QueryResponse
	c.p.must("POST", "/api/query", c.token, map[string]string{
		"sql": "SELECT min(a.stamp), max(a.stamp), min(b.stamp), max(b.stamp), min(c.stamp), max(c.stamp), count(*) FROM a JOIN b USING (id) JOIN c USING (id)",
	}, &answer)
	row := answer.Rows[0]
	for _, v := range row[1:6] {
		if v != row[0] {
			c.t.Errorf("after a kill during %s: the tables mix syncs: %v", phase, row)
		}
	}
	if stamp, ok := row[0].(float64); !ok || int(stamp) < c.promised || int(stamp) > c.stamp {
		c.t.Errorf("after a kill during %s: the tables are of sync %v, want %d to %d", phase, row[0], c.promised, c.stamp)
	}
	if n, err := json.Marshal(row[6]); err != nil || string(n) != "2000" {
		c.t.Errorf("after a kill during %s: the joined tables have %s rows, want 2000", phase, n)
	}
}
