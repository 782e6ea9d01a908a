package release

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Commit is one commit of a history.
type Commit struct {
	ID      string
	Parents []string
	Author  Person
	Message string // as it was written: any text
	At      time.Time
}

// Person is an author. The address identifies and is never published.
type Person struct{ Name, Email string }

// subject returns the message's first line.
func (c Commit) subject() string {
	subject, _, _ := strings.Cut(strings.TrimSpace(c.Message), "\n")
	return strings.TrimSpace(subject)
}

// body returns the message below its first line.
func (c Commit) body() string {
	_, body, _ := strings.Cut(strings.TrimSpace(strings.ReplaceAll(c.Message, "\r\n", "\n")), "\n")
	return strings.TrimSpace(body)
}

// withoutTrailers cuts off the signatures and references at a body's end.
func withoutTrailers(body string) string {
	at := strings.LastIndex(body, "\n\n")
	for line := range strings.SplitSeq(body[at+1:], "\n") {
		if line = strings.TrimSpace(line); line != "" && !trailerLine.MatchString(line) {
			return body
		}
	}
	return strings.TrimSpace(body[:max(at, 0)])
}

var (
	trailerLine   = regexp.MustCompile(`(?i)^(?:[a-z-]+-by|cc|change-id|refs?|fixes|closes|resolves): \S`)
	coAuthor      = regexp.MustCompile(`(?im)^co-authored-by:[ \t]*(.*?)[ \t]*<([^<>\n]*)>`)
	conventional  = regexp.MustCompile(`^([a-zA-Z]+)(?:\(([^()]*)\))?(!)?: +(.*)$`)
	markedBang    = regexp.MustCompile(`^[^\s:]+(?:\([^()]*\))?!: `) // a package's name instead of a type: agent/query!: …
	breakingWord  = regexp.MustCompile(`^BREAKING(?: CHANGE)?: *(.*)$`)
	breakingNote  = regexp.MustCompile(`(?m)^BREAKING[ -]CHANGE:[ \t]*`)
	squashed      = regexp.MustCompile(`^(.*?)[ \t]*\(#(\d+)\)$`)
	mergedGitHub  = regexp.MustCompile(`^Merge pull request #(\d+) from \S+`)
	mergedBucket  = regexp.MustCompile(`^Merged? in .*\(pull request #(\d+)\)`)
	mergedGitLab  = regexp.MustCompile(`(?m)^See merge request \S*!(\d+)\s*$`)
	revertsCommit = regexp.MustCompile(`(?m)^This reverts commit ([0-9a-f]{7,64})\b`)
	revertsNumber = regexp.MustCompile(`(?m)^Reverts (?:[\w.-]+/[\w.-]+)?[#!](\d+)\s*$`)
	revertTitle   = regexp.MustCompile(`^(?:Revert|Reapply) "(.*)"$`)
)

// pullRequest reads what a message says of the pull request that it merged: its
// reference as the host writes it and its title; "" where it says nothing.
func (c Commit) pullRequest() (ref string, title string) {
	subject, body := c.subject(), c.body()
	for _, merged := range []*regexp.Regexp{mergedGitHub, mergedBucket} {
		if m := merged.FindStringSubmatch(subject); m != nil {
			return "#" + m[1], firstLine(body)
		}
	}
	if m := mergedGitLab.FindStringSubmatch(c.Message); m != nil && len(c.Parents) > 1 {
		return "!" + m[1], firstLine(body)
	}
	if m := squashed.FindStringSubmatch(subject); m != nil {
		return "#" + m[2], m[1]
	}
	return "", ""
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(line)
}

// told is what a subject or a title says of a change.
type told struct {
	kind     string // feat, fix, or anything else
	title    string
	breaking bool
}

func tell(subject string) told {
	t := told{title: subject}
	if m := breakingWord.FindStringSubmatch(t.title); m != nil {
		t.title, t.breaking = m[1], true
	}
	if m := conventional.FindStringSubmatch(t.title); m != nil {
		t.breaking = t.breaking || m[3] == "!"
		switch kind := strings.ToLower(m[1]); kind {
		case "feat", "feature", "fix", "bugfix", "perf", "docs", "chore", "ci", "build", "test", "refactor", "style", "revert":
			t.kind, t.title = kind, m[4]
			if m[2] != "" {
				t.title = m[2] + ": " + m[4]
			}
		}
	} else if markedBang.MatchString(t.title) {
		t.breaking = true
	}
	if t.title == "" {
		t.title = subject
	}
	return t
}

// breaks returns what a commit's message says of the change that breaks: the
// passage of its footer and the migration guide.
func (c Commit) breaks() (breaking bool, passage, guide string) {
	body := withoutTrailers(c.body())
	breaking = tell(c.subject()).breaking
	if at := breakingNote.FindStringIndex(body); at != nil {
		breaking, passage = true, body[at[1]:]
	}
	if at := migrationMark.FindStringIndex(body); at != nil {
		guide = strings.TrimSpace(body[at[1]:])
	}
	if at := migrationMark.FindStringIndex(passage); at != nil {
		passage = passage[:at[0]]
	}
	return breaking, strings.TrimSpace(passage), guide
}

// change is one pull request, or one commit that belongs to none.
type change struct {
	ref     string // #12, !12 or empty
	title   string // of the pull request, where a message or the forge tells it
	commits []Commit
	merge   *Commit
	forge   Change // what the forge says; its Number is 0 where it says nothing
}

// changesOf groups commits, newest first, by the pull requests that they came
// with, and leaves out what a later commit of the same range reverted, together
// with the revert. Merge commits are no changes of their own.
func changesOf(commits []Commit, byForge map[string]Change) (changes []change, reverted int) {
	h := newHistory(commits)
	gone := h.reverted()
	group := map[string]int{} // by reference
	for _, c := range commits {
		if gone[c.ID] || bookkeeping(c) {
			reverted += btoi(gone[c.ID] && len(c.Parents) < 2)
			continue
		}
		merge := h.pull[c.ID]
		var ref, title string
		if merge != nil {
			ref, title = merge.pullRequest()
		}
		if own, t := c.pullRequest(); ref == "" && own != "" {
			ref, title = own, t
		}
		said, known := byForge[c.ID]
		if known && ref == "" {
			ref = "#" + strconv.Itoa(said.Number)
		}
		if len(c.Parents) > 1 && (!known || ref == "") {
			continue
		}
		at, ok := group[ref]
		if ref == "" || !ok {
			changes = append(changes, change{ref: ref, title: title, merge: merge})
			at = len(changes) - 1
			group[ref] = at
		}
		if len(c.Parents) < 2 {
			changes[at].commits = append(changes[at].commits, c)
		}
		if known {
			changes[at].forge = said
		}
	}
	return slices.DeleteFunc(changes, func(c change) bool { return len(c.commits) == 0 }), reverted
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// history is a range of commits with what can be worked out about them.
type history struct {
	commits []Commit // newest first
	byID    map[string]int
	brought map[string][]string // merge commit: what it brought
	pull    map[string]*Commit  // commit: the merge of the pull request that it came with
}

func newHistory(commits []Commit) *history {
	h := &history{commits: commits, byID: map[string]int{}, brought: map[string][]string{}, pull: map[string]*Commit{}}
	for i, c := range commits {
		h.byID[c.ID] = i
	}
	done := map[string]bool{}
	// Every commit that is no parent of another begins a line of its own.
	parents := map[string]bool{}
	for _, c := range commits {
		for _, p := range c.Parents {
			parents[p] = true
		}
	}
	for _, c := range commits {
		if !parents[c.ID] {
			h.follow(c.ID, nil, done)
		}
	}
	return h
}

// follow walks a line of first parents from its tip and gives what each merge on
// it brought to that merge, the oldest merge first: a commit belongs to the merge
// that brought it first. It returns all commits that it met.
func (h *history) follow(tip string, merge *Commit, done map[string]bool) (met []string) {
	var line []int
	for id := tip; ; {
		i, ok := h.byID[id]
		if !ok || done[id] {
			break
		}
		done[id] = true
		line = append(line, i)
		if len(h.commits[i].Parents) == 0 {
			break
		}
		id = h.commits[i].Parents[0]
	}
	for _, i := range slices.Backward(line) {
		c := &h.commits[i]
		for _, p := range c.Parents[min(1, len(c.Parents)):] {
			inner := merge
			if ref, _ := c.pullRequest(); ref != "" {
				inner = c
			}
			brought := h.follow(p, inner, done)
			h.brought[c.ID] = append(h.brought[c.ID], brought...)
			met = append(met, brought...)
		}
		if merge != nil {
			h.pull[c.ID] = merge
		}
		met = append(met, c.ID)
	}
	return met
}

// reverted returns the commits that have no effect in this range: those that
// another one reverted, and the reverts.
func (h *history) reverted() map[string]bool {
	targets := map[string][]string{} // revert: what it undoes
	by := map[string][]string{}      // commit: its reverts
	for i := range h.commits {
		c := &h.commits[i]
		for _, id := range h.reverts(c) {
			targets[c.ID] = append(targets[c.ID], id)
			by[id] = append(by[id], c.ID)
		}
	}
	const visiting, no, yes = 1, 2, 3
	state := map[string]int{}
	var undone func(id string) bool
	undone = func(id string) bool {
		switch state[id] {
		case yes:
			return true
		case no, visiting: // a circle cannot be of honest messages
			return false
		}
		state[id] = visiting
		is := slices.ContainsFunc(by[id], func(r string) bool { return !undone(r) })
		state[id] = no
		if is {
			state[id] = yes
		}
		return is
	}
	out := map[string]bool{}
	for _, c := range h.commits {
		if undone(c.ID) || len(targets[c.ID]) > 0 {
			out[c.ID] = true
		}
	}
	return out
}

// reverts returns the commits of this range that c says it reverts.
func (h *history) reverts(c *Commit) (ids []string) {
	for _, m := range revertsCommit.FindAllStringSubmatch(c.Message, -1) {
		if id := h.resolve(m[1]); id != "" && id != c.ID {
			ids = append(append(ids, id), h.brought[id]...)
		}
	}
	m := revertsNumber.FindStringSubmatch(c.Message)
	title := revertTitle.FindStringSubmatch(strings.TrimSpace(withoutNumber(c.subject())))
	if m == nil || title == nil {
		return ids
	}
	// The number may be one of another repository: the title has to fit, too.
	for i := range h.commits {
		other := &h.commits[i]
		ref, name := other.pullRequest()
		if other.ID == c.ID || len(ref) < 2 || ref[1:] != m[1] || cmp.Or(name, other.subject()) != withoutNumber(title[1]) {
			continue
		}
		ids = append(append(ids, other.ID), h.brought[other.ID]...)
	}
	return ids
}

func withoutNumber(subject string) string {
	if m := squashed.FindStringSubmatch(subject); m != nil {
		return m[1]
	}
	return subject
}

// resolve finds the one commit that an abbreviated id names.
func (h *history) resolve(short string) string {
	if _, ok := h.byID[short]; ok {
		return short
	}
	found := ""
	for id := range h.byID {
		if strings.HasPrefix(id, short) {
			if found != "" {
				return ""
			}
			found = id
		}
	}
	return found
}

// changelogCommit is the message of the commit that moves the changelog's entries
// below their version: no change of the product. GitHub starts no workflow for it.
func changelogCommit(v Version) string { return "changelog: release " + v.String() + " [skip ci]" }

var changelogSubject = regexp.MustCompile(`^changelog: release \d{4}\.\d{2}\.\d+ \[skip ci\]$`)

func bookkeeping(c Commit) bool { return changelogSubject.MatchString(c.subject()) }

// contributorsOf returns the names of authors and co-authors, sorted, each once;
// programs are left out.
func contributorsOf(changes []change) []Plain {
	var people []Person
	for _, c := range changes {
		for _, commit := range c.commits {
			people = append(people, commit.Author)
			for _, m := range coAuthor.FindAllStringSubmatch(commit.Message, -1) {
				people = append(people, Person{m[1], m[2]})
			}
		}
	}
	names, addresses := map[string]bool{}, map[string]bool{}
	var out []Plain
	for _, p := range people {
		name, address := oneLine(p.Name), strings.ToLower(strings.TrimSpace(p.Email))
		key := strings.ToLower(string(name))
		if name == "" || p.program() || names[key] || address != "" && addresses[address] {
			continue
		}
		names[key], addresses[address] = true, true
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b Plain) int {
		return cmp.Or(strings.Compare(strings.ToLower(string(a)), strings.ToLower(string(b))), strings.Compare(string(a), string(b)))
	})
	return out
}

// program reports whether a person is none: accounts of GitHub Apps carry [bot] in
// name and address.
func (p Person) program() bool {
	name, address := strings.ToLower(strings.TrimSpace(p.Name)), strings.ToLower(p.Email)
	return strings.HasSuffix(name, "[bot]") || strings.Contains(address, "[bot]@") || strings.HasSuffix(name, "-bot") ||
		name == "github-actions" || address == TaggerEmail || address == "noreply@github.com"
}
