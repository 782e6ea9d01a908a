package fleet

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// datum is a value of a file that has the shape that is wanted there. What is
// absent or has another shape is the zero datum.
type datum struct {
	set     bool
	at      Position
	text    string
	number  int
	isText  bool
	list    []datum
	members map[string]datum
	broken  bool // a member has a fault, and is absent
}

// get returns a member, or the zero datum.
func (d datum) get(key string) datum { return d.members[key] }

// Bounds of a file's values. The deepest that the inventory has is
// instances[].tls.ca, and labels are the most keys together. The parser calls
// itself for each level, and for each further key of a block.
const (
	depthLimit = 32
	keysLimit  = 512
)

// decoder reads one file.
type decoder struct {
	file   string
	faults *faults
}

// decode parses a file and holds it to a shape.
func (d *decoder) decode(content []byte, s *shape) datum {
	top := Position{File: d.file}
	if !utf8.Valid(content) {
		d.faults.add(top, "expected UTF-8 text, found other bytes", "")
		return datum{}
	}
	body, ok := d.parse(string(content))
	if !ok {
		return datum{}
	}
	return d.read(body, s, "", Position{File: d.file, Line: 1, Column: 1})
}

// parse returns the one document's body.
func (d *decoder) parse(content string) (body ast.Node, ok bool) {
	defer func() {
		// A panic of the parser on malformed text must not end the process that
		// watches the fleet.
		if recover() != nil {
			d.faults.add(Position{File: d.file}, "expected YAML, found text that cannot be parsed", "")
			body, ok = nil, false
		}
	}()
	tokens := lexer.Tokenize(content)
	if tk, expected := beyondLimits(tokens); tk != nil {
		d.faults.add(d.at(tk), "expected "+expected+", found more", "")
		return nil, false
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		// Its whole text quotes lines of the file, which may hold a secret.
		at, message := Position{File: d.file}, "text that cannot be parsed"
		if e, ok := errors.AsType[yaml.Error](err); ok {
			message = e.GetMessage()
			if tk := e.GetToken(); tk != nil {
				at = d.at(tk)
			}
		}
		d.faults.add(at, "expected YAML: "+message, "")
		return nil, false
	}
	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if _, comments := doc.Body.(*ast.CommentGroupNode); !comments {
			bodies = append(bodies, doc.Body)
		}
	}
	switch len(bodies) {
	case 0:
		d.faults.add(Position{File: d.file}, "expected an inventory, found an empty file", "Begin with: instances: []")
		return nil, false
	case 1:
		return bodies[0], true
	default:
		d.faults.add(d.nodeAt(bodies[1], Position{File: d.file}), "expected one document, found another after ---", "Put it into a file of its own and name it under include.")
		return nil, false
	}
}

// beyondLimits returns the token at which a file nests deeper, or has more keys
// together, than the parser is given, with what was expected.
func beyondLimits(tokens token.Tokens) (*token.Token, string) {
	type block struct{ column, keys int }
	var blocks []block // the block collections around the token
	flow, line, fresh := 0, 0, false
	for _, tk := range tokens {
		if tk.Position == nil || tk.Type == token.CommentType {
			continue
		}
		first := tk.Position.Line != line
		line = tk.Position.Line
		if flow == 0 && (first || fresh) {
			column := tk.Position.Column
			for len(blocks) > 0 && blocks[len(blocks)-1].column > column {
				blocks = blocks[:len(blocks)-1]
			}
			if len(blocks) == 0 || blocks[len(blocks)-1].column < column {
				blocks = append(blocks, block{column: column})
			}
			if tk.Type != token.SequenceEntryType {
				blocks[len(blocks)-1].keys++
			}
			if blocks[len(blocks)-1].keys > keysLimit {
				return tk, fmt.Sprintf("at most %d keys together", keysLimit)
			}
		}
		fresh = tk.Type == token.SequenceEntryType || tk.Type == token.MappingKeyType
		switch tk.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow = max(0, flow-1)
		default:
		}
		if len(blocks)+flow > depthLimit {
			return tk, fmt.Sprintf("values at most %d deep", depthLimit)
		}
	}
	return nil, ""
}

func (d *decoder) at(tk *token.Token) Position {
	p := Position{File: d.file}
	if tk != nil && tk.Position != nil {
		p.Line, p.Column = tk.Position.Line, tk.Position.Column
	}
	return p
}

// nodeAt is where a node begins. A block mapping's own token is the colon of its
// first pair.
func (d *decoder) nodeAt(n ast.Node, or Position) Position {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return d.at(m.Values[0].Key.GetToken())
		}
	case *ast.MappingValueNode:
		return d.at(m.Key.GetToken())
	case nil:
		return or
	}
	if p := d.at(n.GetToken()); p.Line > 0 {
		return p
	}
	return or
}

// read checks a node against a shape. key leads to it, for people.
func (d *decoder) read(n ast.Node, s *shape, key string, or Position) datum {
	at := d.nodeAt(n, or)
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.DirectiveNode:
		d.faults.add(at, prefixed(key)+"expected a plain value, found an anchor, an alias or a tag", "Write the value out; what many instances share goes under defaults.")
		return datum{}
	}
	switch s.kind {
	case shapeObject:
		return d.object(n, s, key, at)
	case shapeMap:
		return d.mapping(n, s, key, at)
	case shapeList:
		return d.listOf(n, s, key, at)
	case shapeWhole:
		return d.whole(n, s, key, at)
	case shapeChoice:
		for _, c := range s.choices {
			if c.fits(n) {
				return d.read(n, c, key, at)
			}
		}
		return d.wrong(n, s, key, at)
	default:
		return d.textOf(n, s, key, at)
	}
}

// fits reports whether a node is of the shape's kind.
func (s *shape) fits(n ast.Node) bool {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return s.kind == shapeObject || s.kind == shapeMap
	case *ast.SequenceNode:
		return s.kind == shapeList
	case *ast.IntegerNode, *ast.FloatNode:
		return s.kind == shapeWhole
	case *ast.StringNode, *ast.LiteralNode:
		return s.kind == shapeText
	default:
		return false
	}
}

// prefixed is a key before a message.
func prefixed(key string) string {
	if key == "" {
		return ""
	}
	return key + ": "
}

// wrong notes that a node is of another kind.
func (d *decoder) wrong(n ast.Node, s *shape, key string, at Position) datum {
	var found, hint string
	switch v := n.(type) {
	case nil, *ast.NullNode:
		found = "nothing"
		switch s.kind {
		case shapeList:
			hint = "Write [] for none."
		case shapeMap, shapeObject:
			hint = "Write {} for none, or remove the key."
		default:
			hint = "Remove the key, or give it a value."
		}
	case *ast.MappingNode, *ast.MappingValueNode:
		found = "keys and values"
	case *ast.SequenceNode:
		found = "a list"
	case *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		raw := v.GetToken().Value
		found = "the number " + raw
		if _, is := v.(*ast.BoolNode); is {
			found = "the truth value " + raw
		}
		if s.private {
			found = "a number, which is not shown"
		} else if s.kind == shapeText && s.accepts(raw) {
			hint = fmt.Sprintf("Quote it, so that it is text: %q", raw)
		}
	default:
		found = "text"
		if !s.private {
			found = fmt.Sprintf("the text %q", short(n.GetToken().Value))
		}
	}
	d.faults.add(at, prefixed(key)+"expected "+s.expect+", found "+found, hint)
	return datum{}
}

// short cuts text for a message.
func short(text string) string {
	const most = 80
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	return string([]rune(text)[:most]) + "…"
}

func (d *decoder) textOf(n ast.Node, s *shape, key string, at Position) datum {
	var text string
	switch v := n.(type) {
	case *ast.StringNode:
		text = v.Value
	case *ast.LiteralNode:
		text = v.Value.Value
	default:
		return d.wrong(n, s, key, at)
	}
	if s.longest > 0 && utf8.RuneCountInString(text) > s.longest {
		d.faults.add(at, fmt.Sprintf("%sexpected %s of at most %d characters, found more", prefixed(key), s.expect, s.longest), "")
		return datum{}
	}
	if s.check != nil {
		if err := s.check(text); err != nil {
			d.faults.explained(at, prefixed(key), err)
			return datum{}
		}
	}
	if !s.accepts(text) {
		found := fmt.Sprintf("%q", short(text))
		if s.private {
			found = "other text"
		}
		d.faults.add(at, prefixed(key)+"expected "+s.expect+", found "+found, "")
		return datum{}
	}
	return datum{set: true, at: at, text: text, isText: true}
}

// accepts reports whether text is one of those that the JSON Schema accepts.
func (s *shape) accepts(text string) bool {
	return (s.pattern == nil || s.pattern.MatchString(text)) && (s.oneOf == nil || slices.Contains(s.oneOf, text))
}

func (d *decoder) whole(n ast.Node, s *shape, key string, at Position) datum {
	number := math.NaN()
	switch v := n.(type) {
	case *ast.IntegerNode:
		switch i := v.Value.(type) {
		case int64:
			number = float64(i)
		case uint64:
			number = float64(i)
		}
	case *ast.FloatNode: // 10.0 is a whole number, as JSON Schema has it
		number = v.Value
	}
	if number != math.Trunc(number) || number < float64(s.least) || number > float64(s.most) { // NaN is unequal to all
		return d.wrong(n, s, key, at)
	}
	return datum{set: true, at: at, number: int(number)}
}

func (d *decoder) listOf(n ast.Node, s *shape, key string, at Position) datum {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		return d.wrong(n, s, key, at)
	}
	if len(list.Values) > s.size {
		d.faults.add(at, fmt.Sprintf("%sexpected at most %d elements, found %d", prefixed(key), s.size, len(list.Values)), "")
		return datum{}
	}
	out := datum{set: true, at: at}
	for i, v := range list.Values {
		out.list = append(out.list, d.read(v, s.each, named(v, fmt.Sprintf("%s[%d]", key, i)), at))
	}
	return out
}

// named adds an element's name to the key that leads to it.
func named(n ast.Node, key string) string {
	m, ok := n.(ast.MapNode)
	if !ok {
		return key
	}
	for it := m.MapRange(); it.Next(); {
		if name, ok := it.Value().(*ast.StringNode); ok && keyText(it.Key()) == keyName && len(name.Value) <= 63 {
			return key + " (" + name.Value + ")"
		}
	}
	return key
}

// pair is a key with its value.
type pair struct {
	key   string
	at    Position
	value ast.Node
}

// pairs returns a mapping's members. What is no text and what comes twice is noted
// and left out.
func (d *decoder) pairs(n ast.Node, s *shape, key string, at Position) ([]pair, bool) {
	m, ok := n.(ast.MapNode)
	if !ok {
		d.wrong(n, s, key, at)
		return nil, false
	}
	var all []pair
	seen := map[string]Position{}
	for it := m.MapRange(); it.Next(); {
		k := it.Key()
		p := pair{key: keyText(k), at: d.at(k.GetToken()), value: it.Value()}
		if k.IsMergeKey() || p.key == "" {
			d.faults.add(p.at, prefixed(key)+"expected a plain key, found a merge key, or none", "Write the keys out; what many instances share goes under defaults.")
			continue
		}
		if before, twice := seen[p.key]; twice {
			d.faults.add(p.at, fmt.Sprintf("%sexpected each key once, found %q again", prefixed(key), short(p.key)), fmt.Sprintf("Remove this one, or the one in line %d.", before.Line))
			continue
		}
		seen[p.key] = p.at
		all = append(all, p)
	}
	return all, true
}

// keyText is a key as people wrote it; "" for a key that is no plain scalar.
func keyText(k ast.MapKeyNode) string {
	switch v := k.(type) {
	case *ast.StringNode:
		return v.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		return k.GetToken().Value
	default:
		return ""
	}
}

func (d *decoder) mapping(n ast.Node, s *shape, key string, at Position) datum {
	all, ok := d.pairs(n, s, key, at)
	if !ok {
		return datum{}
	}
	if len(all) > s.size {
		d.faults.add(at, fmt.Sprintf("%sexpected at most %d, found %d", prefixed(key), s.size, len(all)), "")
		return datum{}
	}
	out := datum{set: true, at: at, members: map[string]datum{}}
	for _, p := range all {
		if s.keys.check != nil && s.keys.check(p.key) != nil || !s.keys.accepts(p.key) {
			d.faults.add(p.at, fmt.Sprintf("%sexpected %s, found %q", prefixed(key), s.keys.expect, short(p.key)), "")
			continue
		}
		if v := d.read(p.value, s.each, joined(key, p.key), p.at); v.set {
			out.members[p.key] = v
		}
	}
	return out
}

func joined(key, member string) string {
	if key == "" {
		return member
	}
	return key + "." + member
}

func (d *decoder) object(n ast.Node, s *shape, key string, at Position) datum {
	all, ok := d.pairs(n, s, key, at)
	if !ok {
		return datum{}
	}
	out := datum{set: true, at: at, members: map[string]datum{}}
	there := map[string]Position{}
	for _, p := range all {
		f, known := s.field(p.key)
		if !known {
			d.unknown(p, s, key)
			continue
		}
		there[p.key] = p.at
		v := d.read(p.value, f.shape, joined(key, p.key), p.at)
		if v.set {
			out.members[p.key] = v
		}
		out.broken = out.broken || !v.set
	}
	for _, f := range s.fields {
		if _, is := there[f.key]; f.required && !is {
			d.faults.add(at, fmt.Sprintf("%sexpected the key %s, found none", prefixed(key), f.key), fmt.Sprintf("Add %s: %s.", f.key, f.shape.expect))
		}
	}
	for _, both := range s.neither {
		_, one := there[both[0]]
		if second, other := there[both[1]]; one && other {
			d.faults.add(second, fmt.Sprintf("%sexpected %s or %s, found both: %s", prefixed(key), both[0], both[1], s.together), "Remove one of them.")
		}
	}
	if len(s.anyOf) > 0 && !slices.ContainsFunc(s.anyOf, func(k string) bool { _, is := there[k]; return is }) {
		d.faults.add(at, prefixed(key)+"expected the key "+strings.Join(s.anyOf, " or ")+", found none", "Write instances: [] for an empty fleet.")
	}
	return out
}

// unknown notes a key that the shape does not have.
func (d *decoder) unknown(p pair, s *shape, key string) {
	var known []string
	for _, f := range s.fields {
		known = append(known, f.key)
	}
	hint := ""
	switch near := nearest(p.key, known); {
	case near != "":
		hint = "Did you mean " + near + "?"
	case key == "" && (p.key == keyWaves || p.key == keyImage || p.key == keyRollout):
		hint = "Move it to the first file: it holds for the whole fleet."
	}
	d.faults.add(p.at, fmt.Sprintf("%sexpected one of the keys %s, found %q", prefixed(key), strings.Join(known, ", "), short(p.key)), hint)
}

// nearest returns the word that begins and ends as text does, but for two
// letters, for slips.
func nearest(text string, words []string) string {
	best, most := "", 0
	for _, w := range words {
		same := 0
		for same < min(len(w), len(text)) && w[same] == text[same] {
			same++
		}
		tail := 0
		for tail < min(len(w), len(text))-same && w[len(w)-1-tail] == text[len(text)-1-tail] {
			tail++
		}
		if score := same + tail; score > most && max(len(w), len(text))-score <= 2 {
			best, most = w, score
		}
	}
	return best
}
