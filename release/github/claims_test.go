package github_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/release"
	"github.com/keboola/agnes-the-ai-analyst/release/githubtest"
)

// 50 claim different pairs and 20 claim one, all at once, at a host in trouble:
// it answers 409, 500 and 429, loses replies and lists late.
func TestClaimsInTrouble(t *testing.T) {
	t.Parallel()
	w := newWorld(t, githubtest.WithSeed(4), githubtest.WithListLag(3))
	for _, f := range []githubtest.Fault{
		{Status: 409},
		{Status: 500},
		{Status: 500, Carry: true},
		{Carry: true, Cut: true},
		{Cut: true},
		{Status: 429, Header: http.Header{"Retry-After": {"1"}}},
	} {
		f.Method, f.Path, f.Probability = "POST", "*/git/*", 0.04
		w.Inject(f)
	}
	w.Inject(githubtest.Fault{Method: "GET", Probability: 0.05, Status: 502})

	type pair struct {
		channel release.Channel
		commit  string
	}
	var pairs []pair
	for i := range 50 {
		pairs = append(pairs, pair{[]release.Channel{release.Dev, release.Stable}[i%2], w.repo.Commit(fmt.Sprint("commit ", i))})
	}
	same := pair{release.Stable, w.repo.Commit("the same")}
	for range 20 {
		pairs = append(pairs, same)
	}
	rand.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })

	claimAll := func() map[pair]map[release.Version]bool {
		got := map[pair]map[release.Version]bool{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, p := range pairs {
			all.Go(func() {
				ledger := release.NewLedger(w.as(t, githubtest.Token).Refs(), release.LedgerOptions{Now: w.clock.Now, Wait: w.clock.Sleep})
				claim, err := ledger.Claim(t.Context(), p.channel, p.commit)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if got[p] == nil {
					got[p] = map[release.Version]bool{}
				}
				got[p][claim.Version] = true
			})
		}
		all.Wait()
		return got
	}
	first := claimAll()
	taken := map[release.Version]pair{}
	for p, versions := range first {
		if len(versions) != 1 {
			t.Errorf("%s %.7s got %d numbers", p.channel, p.commit, len(versions))
		}
		for v := range versions {
			if other, twice := taken[v]; twice {
				t.Errorf("%s is both %v's and %v's", v, p, other)
			}
			taken[v] = p
		}
	}
	if len(taken) != 51 {
		t.Errorf("%d numbers, want 51", len(taken))
	}
	w.Heal()
	for p, versions := range claimAll() {
		for v := range versions {
			if !first[p][v] {
				t.Errorf("%s %.7s got %s the second time", p.channel, p.commit, v)
			}
		}
	}
	numbers := 0
	for name := range w.repo.Refs() {
		if strings.HasPrefix(name, "refs/tags/") {
			numbers++
		}
	}
	t.Logf("%d tags for 51 claims, %d requests", numbers, len(w.Requests()))
}
