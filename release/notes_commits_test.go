package release

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// line makes a history from lines "id parent,parent message", newest first. Ids
// are padded to whole ones; {id} in a message is another commit's id.
func line(commits ...string) []Commit {
	whole := func(id string) string { return fmt.Sprintf("%x%s", id, strings.Repeat("0", 40-2*len(id))) }
	var out []Commit
	for _, text := range commits {
		parts := strings.SplitN(text, " ", 3)
		c := Commit{ID: whole(parts[0]), Author: Person{"Ada", "ada@example.com"}, Message: parts[2]}
		for p := range strings.SplitSeq(parts[1], ",") {
			c.Parents = append(c.Parents, whole(p))
		}
		for _, other := range commits {
			id, _, _ := strings.Cut(other, " ")
			c.Message = strings.ReplaceAll(c.Message, "{"+id+"}", whole(id))
			c.Message = strings.ReplaceAll(c.Message, "{"+id+":12}", whole(id)[:12])
		}
		out = append(out, c)
	}
	return out
}

func TestChangesAreGroupedAndRevertsCancelOut(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		commits  []string
		want     string // titles with references, newest first
		reverted int
	}{
		"a revert and what it reverts":                         {[]string{"b a Revert \"x\"\n\nThis reverts commit {a}.", "a p x"}, "", 2},
		"an abbreviated id":                                    {[]string{"b a Back out x\n\nThis reverts commit {a:12}.", "a p x"}, "", 2},
		"a revert of an older release's commit":                {[]string{"b a Revert \"old\"\n\nThis reverts commit 1234567890.", "a p x"}, "Revert \"old\" | x", 0},
		"a revert of a revert":                                 {[]string{"c b Reapply \"x\"\n\nThis reverts commit {b}.", "b a Revert \"x\"\n\nThis reverts commit {a}.", "a p x"}, "x", 2},
		"three reverts":                                        {[]string{"d c R\n\nThis reverts commit {c}.", "c b R\n\nThis reverts commit {b}.", "b a R\n\nThis reverts commit {a}.", "a p x"}, "", 4},
		"one revert of two":                                    {[]string{"c b R\n\nThis reverts commit {a}.\nThis reverts commit {b}.", "b a y", "a p x"}, "", 3},
		"a merge, with what it brought":                        {[]string{"d c R\n\nThis reverts commit {c}, reversing\nchanges made to {a}.", "c a,b Merge pull request #9 from o/b\n\nT", "b p y", "a p x"}, "x", 2},
		"a pull request's revert by number":                    {[]string{"b a Revert \"x\" (#8)\n\nReverts o/n#7", "a p x (#7)"}, "", 2},
		"another repository's number":                          {[]string{"b a Revert \"z\" (#8)\n\nReverts other/n#7", "a p x (#7)"}, "Revert \"z\" #8 | x #7", 0},
		"the number in a text":                                 {[]string{"b a y\n\nIt does not say Reverts #7", "a p x (#7)"}, "y | x #7", 0},
		"messages that revert each other":                      {[]string{"b a x\n\nThis reverts commit {a}.", "a p y\n\nThis reverts commit {b}."}, "", 2},
		"a message that reverts itself":                        {[]string{"a p y\n\nThis reverts commit {a}."}, "y", 0},
		"merged by GitHub, one line a request":                 {[]string{"d a,c Merge pull request #3 from o/b\n\nfix: title\n\nmore", "c b two", "b p one", "a p x"}, "title #3 | x", 0},
		"merged by GitHub without a title":                     {[]string{"d a,c Merge pull request #3 from o/b", "c b two", "b p one", "a p x"}, "two #3 | x", 0},
		"merged by GitLab":                                     {[]string{"d a,c Merge branch 'b' into 'main'\n\ntitle\n\nSee merge request group/proj!4", "c p one", "a p x"}, "title !4 | x", 0},
		"merged by Bitbucket":                                  {[]string{"d a,c Merged in b (pull request #5)\n\ntitle", "c p one", "a p x"}, "title #5 | x", 0},
		"merged without a request":                             {[]string{"d a,c Merge branch 'b'", "c p one", "a p x"}, "one | x", 0},
		"a request in a request":                               {[]string{"f a,e Merge pull request #2 from o/outer\n\nouter", "e c,d Merge pull request #1 from o/inner\n\ninner", "d c in", "c p out", "a p x"}, "inner #1 | outer #2 | x", 0},
		"main merged into the branch":                          {[]string{"e b,d Merge pull request #2 from o/b\n\ntopic", "d c,b Merge branch 'main'", "c p mine", "b a theirs (#1)", "a p x"}, "topic #2 | theirs #1 | x", 0},
		"an octopus":                                           {[]string{"d a,b,c Merge pull request #6 from o/b\n\neight arms", "c p two", "b p one", "a p x"}, "eight arms #6 | x", 0},
		"a fast-forward that makes main its own second parent": {[]string{"d b,a Merge pull request #6 from o/b\n\nfoxtrot", "b p branch", "a p main"}, "branch | foxtrot #6", 0},
		"the changelog's own commits":                          {[]string{"b a changelog: release 2026.04.3 [skip ci]", "a p x"}, "x", 0},
		"an empty message":                                     {[]string{"a p "}, "(no subject)", 0},
		"a number alone":                                       {[]string{"a p (#3)"}, "(no subject) #3", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			changes, reverted := changesOf(line(tc.commits...), nil)
			var titles []string
			for _, c := range changes {
				n, _ := c.note()
				titles = append(titles, strings.TrimSpace(string(n.Title)+" "+n.Ref))
			}
			if got := strings.Join(titles, " | "); got != tc.want || reverted != tc.reverted {
				t.Errorf("got %q, %d reverted; want %q, %d", got, reverted, tc.want, tc.reverted)
			}
		})
	}
}

func TestPreviousRelease(t *testing.T) {
	t.Parallel()
	var claims []Claim
	for n, ch := range []Channel{Stable, Dev, Stable, Stable, Dev, Stable} {
		claims = append(claims, Claim{Version: Version{2026, 4, int64(n + 1)}, Channel: ch}) // 1s 2d 3s 4s 5d 6s
	}
	claims = append(claims, Claim{Version: Version{2025, 12, 40}, Channel: Stable})
	slices.Reverse(claims)
	unpublished := func(v Version) bool { return v.N != 4 && v.N != 1 }
	for name, tc := range map[string]struct {
		of        Version
		published func(Version) bool
		want      string
	}{
		"the stable claim before":      {Version{2026, 4, 6}, nil, "2026.04.4 []"},
		"what was never published":     {Version{2026, 4, 6}, unpublished, "2026.04.3 [2026.04.4]"},
		"numbers, not text; last year": {Version{2026, 4, 1}, nil, "2025.12.40 []"},
		"a dev build":                  {Version{2026, 4, 5}, nil, "2026.04.4 []"},
		"the first one":                {Version{2025, 12, 40}, nil, "0000.00.0 []"},
	} {
		got, skipped := PreviousRelease(claims, tc.of, tc.published)
		if text := fmt.Sprint(got.Version, " ", skipped); text != tc.want {
			t.Errorf("%s: %s, want %s", name, text, tc.want)
		}
	}
}

func TestALongHistoryIsGroupedInTime(t *testing.T) {
	t.Parallel()
	var commits []Commit
	const n = 40_000
	id := func(i int) string { return fmt.Sprintf("%040x", i) }
	for i := n; i > 0; i-- { // every second one merges the one below it
		c := Commit{ID: id(i), Parents: []string{id(i - 1)}, Message: fmt.Sprintf("change %d (#%d)", i, i)}
		if i%3 == 0 {
			c.Parents = []string{id(i - 2), id(i - 1)}
			c.Message = fmt.Sprintf("Merge pull request #%d from o/b\n\nchange", i)
		}
		commits = append(commits, c)
	}
	began := time.Now()
	changes, _ := changesOf(commits, nil)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("%d commits took %v", n, took)
	}
	if len(changes) < n/2 {
		t.Errorf("%d changes of %d commits", len(changes), n)
	}
}
