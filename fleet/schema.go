package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/agent/api"
	"github.com/keboola/agnes-the-ai-analyst/fleet/deploy"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// A shape is what a value of the inventory must look like. The decoder checks
// values against it, and Schema writes it as JSON Schema: so an editor that
// follows the schema and the decoder cannot disagree.
type shape struct {
	kind   shapeKind
	expect string // for people, as in "expected …"

	// of text
	pattern *regexp.Regexp
	oneOf   []string
	longest int
	check   func(string) error // what a pattern cannot say; comes first
	private bool               // an error must not show the text

	// of a whole number
	least, most int

	// of an object
	fields   []field
	neither  [][2]string // keys that do not go together
	anyOf    []string    // one key of these must be there; all are optional where empty
	together string      // why, for the error about neither

	// of a list or a map
	each *shape
	keys *shape // a map's
	size int    // most elements

	// of a choice
	choices []*shape
}

type shapeKind int

const (
	shapeText shapeKind = iota
	shapeWhole
	shapeObject
	shapeList
	shapeMap
	shapeChoice
)

// field is one key of an object.
type field struct {
	key      string
	about    string // for editors
	shape    *shape
	required bool
	fallback any // the value where there is none; for editors
}

func (s *shape) field(key string) (field, bool) {
	i := slices.IndexFunc(s.fields, func(f field) bool { return f.key == key })
	if i < 0 {
		return field{}, false
	}
	return s.fields[i], true
}

// Bounds of what a file may say.
const (
	minInterval, maxInterval = time.Second, 24 * time.Hour
	minTimeout, maxTimeout   = 100 * time.Millisecond, time.Minute
	maxSoak                  = 7 * 24 * time.Hour

	maxInstances = 100_000
	maxWaves     = 100
	maxLabels    = 64
	maxIncludes  = 1_000
)

// Keys of the file that the code asks for by name.
const (
	keyImage, keyInclude, keyDefaults, keyWaves, keyInstances = "image", "include", "defaults", "waves", "instances"

	keyName, keyURL, keyChannel, keyPin, keyHost, keyCloud, keyLabels, keyToken = "name", "url", "channel", "pin", "host", "cloud", "labels", "token"

	keyConfigHash = "config_hash"

	keyInterval, keyTimeout, keyTLS, keyCA, keyServerName = "interval", "timeout", "tls", "ca", "server_name"

	keyMatch, keyPercent, keySoak, keyMaxUnavailable = "match", "percent", "soak", "max_unavailable"

	keyRollout, keyDesired, keyMaxUnreachable, keyArriveWithin, keyErrorBudget = "rollout", "desired", "max_unreachable", "arrive_within", "error_budget"
)

// partShape is a file that another one includes: its instances, and what holds
// for them.
func partShape() *shape {
	s := &shape{kind: shapeObject, expect: "an inventory", anyOf: []string{keyInstances, keyInclude}}
	s.fields = []field{
		{key: keyInclude, about: "Further files, relative to this one; the last element may be a pattern. Their instances join those here; defaults hold for their own file alone.", shape: &shape{
			kind: shapeList, expect: "a list of files", size: maxIncludes,
			each: &shape{kind: shapeText, expect: "a path below the folder of the first file, such as customers/*.yaml", pattern: regexp.MustCompile(`^[^/\\].*$`), longest: 1024},
		}},
		{key: keyDefaults, about: "What holds for the instances of this file that do not say otherwise.", shape: defaultsShape()},
		{key: keyInstances, about: "The members of the fleet.", shape: &shape{kind: shapeList, expect: "a list of instances", size: maxInstances, each: instanceShape()}},
	}
	return s
}

// rootShape is fleet.yaml itself.
func rootShape() *shape {
	s := partShape()
	s.fields = slices.Concat([]field{
		{key: keyImage, about: "Repository of the fleet's image, without a tag.", fallback: DefaultImage, shape: &shape{
			kind: shapeText, expect: "an image without tag and digest, such as " + DefaultImage, longest: 255,
			pattern: regexp.MustCompile(`^(?:[A-Za-z0-9.-]+(?::[0-9]{1,5})?/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$`),
		}},
		{key: keyWaves, about: "The order of a rollout: each wave must pass its gate before the next begins. Each instance is in the first wave that takes it.", shape: &shape{
			kind: shapeList, expect: "a list of waves", size: maxWaves, each: waveShape(),
		}},
		{key: keyRollout, about: "What holds for a rollout as a whole.", shape: rolloutShape()},
	}, watchFields(), s.fields)
	return s
}

func defaultsShape() *shape {
	return &shape{kind: shapeObject, expect: "defaults", fields: []field{
		{key: keyChannel, about: "Channel that instances without a pin follow.", shape: channelShape(), fallback: string(release.Stable)},
		intervalField(), timeoutField(), tlsField(), maxDataAgeField(),
	}}
}

func instanceShape() *shape {
	return &shape{
		kind: shapeObject, expect: "an instance",
		neither: [][2]string{{keyPin, keyChannel}}, together: "a pinned instance follows no channel",
		fields: []field{
			{key: keyName, about: "Unique name, a DNS label.", shape: nameShape(), required: true},
			{key: keyURL, about: "Address of the instance.", required: true, shape: &shape{
				kind: shapeText, expect: "an address https://HOST, or http:// on this machine", check: checkURL, private: true, longest: 2048,
				pattern: regexp.MustCompile(`^(?:[hH][tT][tT][pP][sS]://[^\s/@?#]+|[hH][tT][tT][pP]://(?:[lL][oO][cC][aA][lL][hH][oO][sS][tT]|127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}|\[::1\])(?::[0-9]*)?)(?:/[^?#]*)?$`),
			}},
			{key: keyChannel, about: "Channel to follow; the file's default where left out.", shape: channelShape()},
			{key: keyPin, about: "Version to stay at, such as stable-2026.04.3.", shape: &shape{
				kind: shapeText, expect: "a version tag such as stable-2026.04.3", check: checkPin,
				pattern: regexp.MustCompile(`^(?:(?:dev|stable)-)?[0-9]{4}\.(?:0[1-9]|1[0-2])\.[1-9][0-9]{0,17}$`),
			}},
			{key: keyHost, about: "Machine to deploy to over SSH (delivery: push). Without it the host fetches what is wanted (delivery: pull).", shape: &shape{
				kind: shapeText, expect: "ssh://USER@HOST[:PORT][/DIR]", check: checkHost, private: true, longest: 2048,
				pattern: regexp.MustCompile(`^[sS][sS][hH]://[^@/?#]+@[^?#]+$`),
			}},
			{key: keyCloud, about: "Where the machine is.", shape: &shape{kind: shapeText, expect: "gcp, aws or host", oneOf: []string{"gcp", "aws", "host"}}},
			{key: keyLabels, about: "What selectors see besides name, cloud, channel and delivery.", shape: &shape{
				kind: shapeMap, expect: "labels", size: maxLabels, keys: ownLabelShape(), each: labelValueShape(),
			}},
			{key: keyToken, about: "Access token of an administrator, by file or environment; never the token itself.", shape: &shape{
				kind: shapeText, expect: "${file:PATH} or ${env:NAME}", check: checkToken, private: true, longest: 1024, pattern: tokenText,
			}},
			{key: keyConfigHash, about: "Hash of the settings that the instance should have, as agnesctl fleet status -o wide shows it; any where left out.", shape: &shape{
				kind: shapeText, expect: "16 hexadecimal digits, as agnesctl fleet status -o wide shows them", pattern: regexp.MustCompile(`^[0-9a-f]{16}$`),
			}},
			intervalField(), timeoutField(), tlsField(), maxDataAgeField(),
		},
	}
}

func waveShape() *shape {
	return &shape{kind: shapeObject, expect: "a wave", fields: []field{
		{key: keyName, about: "Unique name.", shape: nameShape(), required: true},
		{key: keyMatch, about: "Which instances the wave takes: labels that must all have these values, or a selector's text.", shape: matchShape()},
		{key: keyPercent, about: "Share of the instances that no earlier wave has and match selects; rounded up.", shape: &shape{
			kind: shapeWhole, expect: "a whole number from 1 to 100", least: 1, most: 100,
		}},
		{key: keySoak, about: "How long the wave must stay well before the next one begins.", shape: durationShape(0, maxSoak, "10m"), fallback: "0s"},
		{key: keyMaxUnavailable, about: "How many instances may be away at a time: a number, or a share of the wave.", fallback: 1, shape: &shape{
			kind: shapeChoice, expect: "a number from 1, or a share such as 10%",
			choices: []*shape{
				{kind: shapeWhole, expect: "a whole number from 1", least: 1, most: maxInstances},
				{kind: shapeText, expect: "a share from 1% to 100%", pattern: regexp.MustCompile(`^(?:100|[1-9][0-9]?)%$`)},
			},
		}},
	}}
}

func rolloutShape() *shape {
	return &shape{kind: shapeObject, expect: "settings of rollouts", fields: []field{
		{key: keyDesired, about: "Folder of the files NAME.json that hosts read what they shall run from, relative to this file.", fallback: DefaultDesired, shape: &shape{
			kind: shapeText, expect: "a folder below that of the first file, such as desired", longest: 255,
			pattern: regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$`),
		}},
		{key: keyMaxUnreachable, about: "How many members may be out of reach before a rollout stops: a number, or a share of all members, at least one.", fallback: "5%", shape: &shape{
			kind: shapeChoice, expect: "a number from 0, or a share such as 5%",
			choices: []*shape{
				{kind: shapeWhole, expect: "a whole number from 0", least: 0, most: maxInstances},
				{kind: shapeText, expect: "a share from 1% to 100%", pattern: regexp.MustCompile(`^(?:100|[1-9][0-9]?)%$`)},
			},
		}},
		{key: keyArriveWithin, about: "How long a host that fetches what is wanted may take to run it.", shape: durationShape(time.Second, maxSoak, "2h"), fallback: "2h"},
		{key: keyErrorBudget, about: "Share of a wave's probes that may fail while it soaks, in percent.", fallback: DefaultErrorBudget, shape: &shape{
			kind: shapeWhole, expect: "a whole number from 0 to 100", least: 0, most: 100,
		}},
	}}
}

func nameShape() *shape {
	return &shape{
		kind: shapeText, expect: "a name of small letters, digits and -, 63 at most, such as acme",
		pattern: regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$`),
	}
}

func channelShape() *shape {
	return &shape{kind: shapeText, expect: "dev or stable", oneOf: []string{string(release.Dev), string(release.Stable)}}
}

func intervalField() field {
	return field{key: keyInterval, about: "Time between two probes.", shape: durationShape(minInterval, maxInterval, "30s"), fallback: "30s"}
}

func timeoutField() field {
	return field{key: keyTimeout, about: "Longest time for one probe; not longer than the interval.", shape: durationShape(minTimeout, maxTimeout, "5s"), fallback: "5s"}
}

func tlsField() field {
	return field{key: keyTLS, about: "How the certificate is checked.", shape: &shape{kind: shapeObject, expect: "tls: {ca: FILE, server_name: NAME}", fields: []field{
		{key: keyCA, about: "PEM file with a private authority, relative to this file.", shape: &shape{
			kind: shapeText, expect: "the path of a PEM file below the folder of the first file", pattern: regexp.MustCompile(`^(?:[^/\\].*)?$`), longest: 1024,
		}},
		{key: keyServerName, about: "Name that the certificate must bear, where it is not the URL's host.", shape: &shape{
			kind: shapeText, expect: "a host name", pattern: regexp.MustCompile(`^(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}))?$`),
		}},
	}}}
}

func durationShape(least, most time.Duration, example string) *shape {
	expect := fmt.Sprintf("a duration from %s to %s, such as %s", shortDuration(least), shortDuration(most), example)
	return &shape{
		kind: shapeText, expect: expect, longest: 32,
		pattern: regexp.MustCompile(`^(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+$`),
		check: func(text string) error {
			if d, err := time.ParseDuration(text); err != nil || d < least || d > most {
				return fmt.Errorf("expected %s, found %q", expect, text)
			}
			return nil
		},
	}
}

// shortDuration is d without the zeros of its String: 24h, not 24h0m0s.
func shortDuration(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

func labelKeyShape() *shape {
	return &shape{kind: shapeText, expect: "a label's name, such as tier", pattern: labelKey}
}

// ownLabelShape leaves out the labels that every instance has by itself.
func ownLabelShape() *shape {
	s := labelKeyShape()
	reserved := []string{labelName, labelCloud, labelChannel, labelDelivery}
	s.expect = "a label's name, such as tier, and none of " + strings.Join(reserved, ", ") + ", which every instance has by itself"
	s.check = func(text string) error {
		if slices.Contains(reserved, text) {
			return fmt.Errorf("expected %s, found %q", s.expect, text)
		}
		return nil
	}
	return s
}

func labelValueShape() *shape {
	return &shape{kind: shapeText, expect: "a label's value, such as canary", pattern: labelValue}
}

func checkURL(text string) error {
	u, err := api.ParseURL(text)
	if err != nil {
		return err
	}
	if u.Scheme == "http" && !loopback(u) {
		return problem.New(problem.Usage, fmt.Sprintf("expected https, found %s: everybody on the way could read what the instance says", u), "Write https://"+u.Host+u.Path)
	}
	return nil
}

func loopback(u *url.URL) bool {
	addr, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && addr.IsLoopback()
}

func checkPin(text string) error {
	switch tag := release.ParseTag(text); tag.Kind {
	case release.TagVersion, release.TagNumber:
		return nil
	case release.TagFloating:
		return problem.New(problem.Usage, fmt.Sprintf("expected a version tag such as stable-2026.04.3, found the channel %s", text), "Write channel: "+text)
	default:
		return problem.New(problem.Usage, fmt.Sprintf("expected a version tag such as stable-2026.04.3, found %q", text), "release-bot version list")
	}
}

func checkHost(text string) error {
	_, err := deploy.ParseTarget(text)
	return err
}

func checkSelector(text string) error {
	s, err := ParseSelector(text)
	if err == nil && s.Empty() {
		return errors.New("expected a selector such as tier=canary, found nothing")
	}
	return err
}

// SchemaID names the inventory's JSON Schema, for editors.
const SchemaID = "https://github.com/keboola/agnes-the-ai-analyst/schemas/fleet.json"

// Schema returns the JSON Schema (draft 2020-12) of fleet.yaml, and PartSchema
// that of files that it includes. What only Load can know is not in them: names
// that occur twice, bounds of durations, files that are missing.
func Schema() ([]byte, error) { return schemaOf(rootShape(), "Fleet inventory", SchemaID) }

// PartSchema returns the JSON Schema of an included file.
func PartSchema() ([]byte, error) {
	return schemaOf(partShape(), "Part of a fleet inventory", strings.Replace(SchemaID, "fleet.json", "fleet-part.json", 1))
}

func schemaOf(s *shape, title, id string) ([]byte, error) {
	described := s.schema()
	described["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	described["$id"] = id
	described["title"] = title
	out, err := json.MarshalIndent(described, "", "  ")
	return append(out, '\n'), err
}

func (s *shape) schema() map[string]any {
	switch s.kind {
	case shapeWhole:
		return map[string]any{"type": "integer", "minimum": s.least, "maximum": s.most}
	case shapeList:
		return map[string]any{"type": "array", "items": s.each.schema(), "maxItems": s.size}
	case shapeMap:
		return map[string]any{"type": "object", "propertyNames": s.keys.schema(), "additionalProperties": s.each.schema(), "maxProperties": s.size}
	case shapeChoice:
		var all []any
		for _, c := range s.choices {
			all = append(all, c.schema())
		}
		return map[string]any{"oneOf": all}
	case shapeObject:
		return s.objectSchema()
	default:
		return s.textSchema()
	}
}

func (s *shape) textSchema() map[string]any {
	out := map[string]any{"type": "string"}
	if s.pattern != nil {
		out["pattern"] = s.pattern.String()
	}
	if s.oneOf != nil {
		out["enum"] = s.oneOf
	}
	if s.longest > 0 {
		out["maxLength"] = s.longest
	}
	return out
}

func (s *shape) objectSchema() map[string]any {
	properties := map[string]any{}
	required := []string{}
	for _, f := range s.fields {
		p := f.shape.schema()
		p["description"] = f.about
		if f.fallback != nil {
			p["default"] = f.fallback
		}
		properties[f.key] = p
		if f.required {
			required = append(required, f.key)
		}
	}
	out := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		out["required"] = required
	}
	if len(s.anyOf) > 0 {
		var oneOf []any
		for _, key := range s.anyOf {
			oneOf = append(oneOf, map[string]any{"required": []string{key}})
		}
		out["anyOf"] = oneOf
	}
	for _, pair := range s.neither {
		out["not"] = map[string]any{"required": pair}
	}
	return out
}
