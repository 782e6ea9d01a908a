package fleet

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Selector picks instances by their labels. Its text is Kubernetes' label
// selector: terms with commas between them, which must all hold.
//
//	tier=canary  tier==canary   the label has this value
//	cloud!=aws                  it has another one, or is absent
//	region in (eu,us)           it has one of these
//	region notin (eu,us)        it has none of these, or is absent
//	beta  !beta                 it is there, whatever its value; it is absent
//
// The zero Selector matches everything.
type Selector struct{ terms []term }

type term struct {
	key    string
	op     operator
	values []string // sorted, each once
}

type operator string

const (
	opIn     operator = "in"
	opNotIn  operator = "notin"
	opExists operator = "exists"
	opAbsent operator = "absent"
)

// Limits and spelling of labels are those of Kubernetes.
const (
	labelPart    = `[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?`
	labelDomain  = `[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?){0,8}`
	keyPattern   = `^(?:` + labelDomain + `/)?` + labelPart + `$`
	valuePattern = `^(?:` + labelPart + `)?$`

	selectorLimit = 4 << 10 // bytes
)

var (
	labelKey   = regexp.MustCompile(keyPattern)
	labelValue = regexp.MustCompile(valuePattern)
)

// ParseSelector reads a selector's text; no text is the Selector that matches
// everything.
func ParseSelector(text string) (Selector, error) {
	p := &selectorParser{text: text}
	if len(text) > selectorLimit {
		return Selector{}, p.expected(fmt.Sprintf("at most %d characters", selectorLimit))
	}
	var s Selector
	if p.peek() == "" {
		return s, nil
	}
	for {
		t, err := p.term()
		if err != nil {
			return Selector{}, err
		}
		s.terms = append(s.terms, t)
		switch p.peek() {
		case "":
			return s, nil
		case ",":
			p.next()
		default:
			return Selector{}, p.expected("a comma or the end")
		}
	}
}

// selectorOf returns the selector of labels that must all have these values.
func selectorOf(labels map[string]string) Selector {
	var s Selector
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		s.terms = append(s.terms, term{key: key, op: opIn, values: []string{labels[key]}})
	}
	return s
}

// Empty reports whether the selector matches everything.
func (s Selector) Empty() bool { return len(s.terms) == 0 }

// Matches reports whether labels satisfy every term.
func (s Selector) Matches(labels map[string]string) bool {
	for _, t := range s.terms {
		if !t.matches(labels) {
			return false
		}
	}
	return true
}

func (t term) matches(labels map[string]string) bool {
	value, there := labels[t.key]
	switch t.op {
	case opExists:
		return there
	case opAbsent:
		return !there
	case opNotIn:
		return !there || !slices.Contains(t.values, value)
	default:
		return there && slices.Contains(t.values, value)
	}
}

// String returns text that ParseSelector reads as s.
func (s Selector) String() string {
	texts := make([]string, len(s.terms))
	for i, t := range s.terms {
		texts[i] = t.String()
	}
	return strings.Join(texts, ",")
}

// String returns the term as people write it.
func (t term) String() string {
	switch {
	case t.op == opExists:
		return t.key
	case t.op == opAbsent:
		return "!" + t.key
	case len(t.values) == 1 && t.op == opIn:
		return t.key + "=" + t.values[0]
	case len(t.values) == 1:
		return t.key + "!=" + t.values[0]
	default:
		return fmt.Sprintf("%s %s (%s)", t.key, t.op, strings.Join(t.values, ","))
	}
}

// MarshalText writes what String returns.
func (s Selector) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// selectorParser reads tokens: marks, and words between them.
type selectorParser struct {
	text string
	at   int // where the next token is looked for
}

const selectorMarks = "!=(),"

// scan returns the next token, where it begins and where it ends; no token at the
// end.
func (p *selectorParser) scan() (token string, from, to int) {
	from = p.at
	for from < len(p.text) && (p.text[from] == ' ' || p.text[from] == '\t') {
		from++
	}
	rest := p.text[from:]
	switch {
	case rest == "":
		return "", from, from
	case strings.HasPrefix(rest, "!=") || strings.HasPrefix(rest, "=="):
		to = from + 2
	case strings.Contains(selectorMarks, rest[:1]):
		to = from + 1
	default:
		if to = strings.IndexAny(rest, selectorMarks+" \t"); to < 0 {
			to = len(rest)
		}
		to += from
	}
	return p.text[from:to], from, to
}

func (p *selectorParser) peek() string {
	token, _, _ := p.scan()
	return token
}

func (p *selectorParser) next() string {
	token, _, to := p.scan()
	p.at = to
	return token
}

func (p *selectorParser) term() (term, error) {
	if p.peek() == "!" {
		p.next()
		key, err := p.key()
		return term{key: key, op: opAbsent}, err
	}
	key, err := p.key()
	if err != nil {
		return term{}, err
	}
	switch op := p.peek(); op {
	case "", ",":
		return term{key: key, op: opExists}, nil
	case "=", "==", "!=":
		p.next()
		value, err := p.value()
		t := term{key: key, op: opIn, values: []string{value}}
		if op == "!=" {
			t.op = opNotIn
		}
		return t, err
	case "in", "notin":
		p.next()
		values, err := p.list()
		return term{key: key, op: operator(op), values: values}, err
	default:
		return term{}, p.expected("=, !=, in, notin, a comma or the end")
	}
}

func (p *selectorParser) key() (string, error) {
	if key := p.peek(); !labelKey.MatchString(key) {
		return "", p.expected("a label's name")
	}
	return p.next(), nil
}

// value reads a value, which may be empty.
func (p *selectorParser) value() (string, error) {
	switch value := p.peek(); {
	case value == "" || value == "," || value == ")":
		return "", nil
	case !labelValue.MatchString(value):
		return "", p.expected("a label's value")
	default:
		return p.next(), nil
	}
}

func (p *selectorParser) list() ([]string, error) {
	if p.peek() != "(" {
		return nil, p.expected("(")
	}
	p.next()
	var values []string
	for {
		value, err := p.value()
		if err != nil {
			return nil, err
		}
		values = append(values, value)
		switch p.peek() {
		case ")":
			p.next()
			slices.Sort(values)
			return slices.Compact(values), nil
		case ",":
			p.next()
		default:
			return nil, p.expected("a comma or )")
		}
	}
}

func (p *selectorParser) expected(what string) error {
	token, from, _ := p.scan()
	found := "its end"
	if len(p.text) > selectorLimit {
		from, found = selectorLimit, "more"
	} else if token != "" {
		found = fmt.Sprintf("%q", token)
	}
	return problem.New(problem.Usage, fmt.Sprintf("expected %s at character %d of the selector, found %s", what, len([]rune(p.text[:from]))+1, found),
		"write it as tier=canary,cloud!=aws,region in (eu,us),!beta")
}
