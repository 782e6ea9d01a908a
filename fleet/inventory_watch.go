package fleet

import (
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// Kind is what an incident is about.
type Kind string

// The kinds. An instance that is down was unreachable or unhealthy when it was
// found so; that the other one follows is the same incident.
const (
	KindUnreachable Kind = "unreachable" // nothing answers
	KindUnhealthy   Kind = "unhealthy"   // something answers badly
	KindDegraded    Kind = "degraded"    // for long
	KindDeprecated  Kind = "deprecated"  // it runs a deprecated version
	KindCertificate Kind = "certificate" // its certificate ends soon
	KindStale       Kind = "stale"       // its data is too old
	KindDrift       Kind = "drift"       // it runs something else than is wanted, for long
	KindMonitor     Kind = "monitor"     // the monitor itself is in trouble, or its network
	KindRollout     Kind = "rollout"     // a rollout and its steps
)

func kinds() []string {
	return []string{string(KindUnreachable), string(KindUnhealthy), string(KindDegraded), string(KindDeprecated), string(KindCertificate), string(KindStale), string(KindDrift), string(KindMonitor), string(KindRollout)}
}

// Watch is how a fleet is watched, and when something is an incident.
type Watch struct {
	Down, Of      int           // a state counts when so many of the last so many probes say so
	DegradedAfter time.Duration // how long an instance may be degraded
	DriftAfter    time.Duration // how long it may run something else
	CertBefore    time.Duration // how long before its end a certificate is an incident
	MaxDataAge    time.Duration // of instances without one of their own
	GroupWait     time.Duration // how long what is to be told waits for others
	Keep          time.Duration // changes and incidents
	KeepLatency   time.Duration
}

// DefaultWatch is that of an inventory which says nothing.
func DefaultWatch() Watch {
	return Watch{
		Down: 2, Of: 3, DegradedAfter: 30 * time.Minute, DriftAfter: 24 * time.Hour, CertBefore: 14 * 24 * time.Hour,
		MaxDataAge: 26 * time.Hour, GroupWait: 30 * time.Second, Keep: 400 * 24 * time.Hour, KeepLatency: 30 * 24 * time.Hour,
	}
}

// Maintenance is a time in which nobody is told that some instances are down:
// once, or each week.
type Maintenance struct {
	Match    Selector // empty: all
	From, To time.Time
	Weekly   Weekly // where From is zero
	Reason   string
	Source   Position
}

// Covers reports whether an instance with these labels is in maintenance at a
// moment.
func (m Maintenance) Covers(labels map[string]string, at time.Time) bool {
	if !m.Match.Matches(labels) {
		return false
	}
	if m.From.IsZero() {
		return m.Weekly.Contains(at)
	}
	return !at.Before(m.From) && at.Before(m.To)
}

// Weekly is a span of time on some days of the week, by the clock of a zone: where
// the clock is set forward or back, the span is shorter or longer.
type Weekly struct {
	days     [7]bool // by time.Weekday: on which the span begins
	from, to int     // minutes of the day; to <= from: it ends on the next day
	zone     *time.Location
	text     string
}

var weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"} //nolint:gochecknoglobals // a constant table

var weeklyText = regexp.MustCompile(`^(daily|(?:Sun|Mon|Tue|Wed|Thu|Fri|Sat)(?:[,-](?:Sun|Mon|Tue|Wed|Thu|Fri|Sat))*) ((?:[01][0-9]|2[0-3]):[0-5][0-9])-((?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00)(?: ([A-Za-z0-9_+/-]+))?$`)

// ParseWeekly reads "Sun 02:00-04:00" (UTC), "Mon-Fri 22:00-02:00 Europe/Prague",
// "Sat,Sun 00:00-24:00" or "daily 03:00-03:30".
func ParseWeekly(text string) (Weekly, error) {
	wrong := func(found string) error {
		return problem.New(problem.Usage, fmt.Sprintf("expected days and a span of time such as Sun 02:00-04:00 Europe/Prague, found %s", found), "Days are Mon, Mon-Fri, Sat,Sun or daily; without a zone it is UTC.")
	}
	parts := weeklyText.FindStringSubmatch(text)
	if parts == nil {
		return Weekly{}, wrong(fmt.Sprintf("%q", short(text)))
	}
	w := Weekly{from: minuteOf(parts[2]), to: minuteOf(parts[3]), text: text}
	if w.from == w.to {
		return Weekly{}, wrong("a span without length")
	}
	var err error
	if w.zone, err = time.LoadLocation(parts[4]); err != nil { // UTC when empty
		return Weekly{}, wrong(fmt.Sprintf("a time zone %q that is not known here", parts[4]))
	}
	if parts[1] == "daily" {
		parts[1] = "Sun-Sat"
	}
	for days := range strings.SplitSeq(parts[1], ",") {
		first, last, isRange := strings.Cut(days, "-")
		if strings.Contains(last, "-") {
			return Weekly{}, wrong(fmt.Sprintf("the days %q", days))
		}
		day := slices.Index(weekdays, first)
		w.days[day] = true
		for isRange && weekdays[day] != last {
			day = (day + 1) % len(weekdays)
			w.days[day] = true
		}
	}
	return w, nil
}

func minuteOf(clock string) int {
	var hour, minute int
	_, _ = fmt.Sscanf(clock, "%d:%d", &hour, &minute) // as the pattern has checked
	return hour*60 + minute
}

// Contains reports whether a moment is in the span.
func (w Weekly) Contains(at time.Time) bool {
	if w.zone == nil {
		return false
	}
	at = at.In(w.zone)
	minute, day := at.Hour()*60+at.Minute(), int(at.Weekday())
	if w.from < w.to {
		return w.days[day] && minute >= w.from && minute < w.to
	}
	return w.days[day] && minute >= w.from || w.days[(day+6)%7] && minute < w.to
}

// String returns the text that it was read from.
func (w Weekly) String() string { return w.text }

// Alert is a channel that tells people of incidents.
type Alert struct {
	Name   string
	Type   AlertType
	Match  Selector // of instances; the monitor's own trouble and rollouts go everywhere
	Kinds  []Kind   // none: all
	Source Position

	URL    Token // of slack and webhook
	Secret Token // webhook: the key of the signature; email: the password; telegram and github: the token

	Server, User, From string // of email; Server is HOST:PORT
	To                 []string
	Security           string // of email: starttls, tls, or none on this machine

	Chat   string // of telegram
	Repo   string // of github: OWNER/NAME
	Labels []string
	API    string // of telegram and github: another server than the usual one
}

// AlertType is the kind of a channel.
type AlertType string

// The types.
const (
	AlertSlack    AlertType = "slack"
	AlertWebhook  AlertType = "webhook"
	AlertEmail    AlertType = "email"
	AlertTelegram AlertType = "telegram"
	AlertGitHub   AlertType = "github"
)

// Wants reports whether a channel tells of a kind of incident at an instance with
// these labels; the monitor itself and a rollout have none.
func (a Alert) Wants(kind Kind, labels map[string]string) bool {
	if len(a.Kinds) > 0 && !slices.Contains(a.Kinds, kind) {
		return false
	}
	return kind == KindMonitor || kind == KindRollout || a.Match.Matches(labels)
}

// Keys of these sections.
const (
	keyWatch, keyMaintenance, keyAlerts, keyMaxDataAge = "watch", "maintenance", "alerts", "max_data_age"

	keyJudge, keyDegradedAfter, keyDriftAfter, keyCertBefore = "judge", "degraded_after", "drift_after", "certificate_before"
	keyGroupWait, keyKeep, keyKeepLatency                    = "group_wait", "keep", "keep_latency"

	keyFrom, keyTo, keyWeekly, keyReason = "from", "to", "weekly", "reason"

	keyType, keyKinds, keySecret, keyServer, keyUser, keyPassword = "type", "kinds", "secret", "server", "user", "password"
	keyChat, keyRepo, keyAPI                                      = "chat", "repo", "api"
)

const maxAlerts = 100

// watchFields are the sections of the first file about watching.
func watchFields() []field {
	judged := regexp.MustCompile(`^[1-9][0-9]?/[1-9][0-9]?$`)
	return []field{
		{key: keyWatch, about: "How the fleet is watched, and when something is an incident.", shape: &shape{kind: shapeObject, expect: "watch: {…}", fields: []field{
			{key: keyJudge, about: "M/N: a state counts when M of the last N probes say so.", fallback: "2/3", shape: &shape{kind: shapeText, expect: "M/N such as 2/3", pattern: judged, check: checkJudge}},
			{key: keyDegradedAfter, about: "How long an instance may be degraded.", fallback: "30m", shape: durationShape(0, 30*24*time.Hour, "30m")},
			{key: keyDriftAfter, about: "How long it may run something else than is wanted.", fallback: "24h", shape: durationShape(0, 90*24*time.Hour, "24h")},
			{key: keyCertBefore, about: "How long before its end a certificate is an incident.", fallback: "336h", shape: durationShape(0, 90*24*time.Hour, "336h")},
			{key: keyGroupWait, about: "How long what is to be told waits for others, so that they come together.", fallback: "30s", shape: durationShape(0, time.Hour, "30s")},
			{key: keyKeep, about: "How long changes and incidents are kept.", fallback: "9600h", shape: durationShape(24*time.Hour, 10*366*24*time.Hour, "9600h")},
			{key: keyKeepLatency, about: "How long latencies are kept.", fallback: "720h", shape: durationShape(24*time.Hour, 10*366*24*time.Hour, "720h")},
		}}},
		{key: keyMaintenance, about: "Times in which nobody is told that instances are down. What is down at their end is told then.", shape: &shape{
			kind: shapeList, expect: "a list of times", size: 1000, each: &shape{
				kind: shapeObject, expect: "a time", neither: [][2]string{{keyFrom, keyWeekly}}, together: "a time is once or each week",
				fields: []field{
					{key: keyMatch, about: "Which instances: labels that must all have these values, or a selector's text; all where left out.", shape: matchShape()},
					{key: keyFrom, about: "Begin, as 2026-05-01T20:00:00Z.", shape: momentShape()},
					{key: keyTo, about: "End.", shape: momentShape()},
					{key: keyWeekly, about: "Days and a span of time, as Sun 02:00-04:00 Europe/Prague; UTC without a zone.", shape: &shape{
						kind: shapeText, expect: "days and a span of time such as Sun 02:00-04:00 Europe/Prague", longest: 200, pattern: weeklyText,
						check: func(text string) error { _, err := ParseWeekly(text); return err },
					}},
					{key: keyReason, about: "Why.", shape: &shape{kind: shapeText, expect: "a reason", longest: 500}},
				},
			},
		}},
		{key: keyAlerts, about: "Channels that tell people of incidents.", shape: &shape{kind: shapeList, expect: "a list of channels", size: maxAlerts, each: alertShape()}},
	}
}

func checkJudge(text string) error {
	m, n := judgeOf(text)
	_, err := NewJudge(m, n)
	return err
}

func judgeOf(text string) (m, n int) {
	_, _ = fmt.Sscanf(text, "%d/%d", &m, &n)
	return m, n
}

func maxDataAgeField() field {
	return field{key: keyMaxDataAge, about: "Age of the data beyond which it is an incident; known where there is a token.", fallback: "26h", shape: durationShape(time.Minute, 366*24*time.Hour, "26h")}
}

func matchShape() *shape {
	return &shape{
		kind: shapeChoice, expect: "labels such as {tier: canary}, or a selector such as tier=canary,cloud!=aws",
		choices: []*shape{
			{kind: shapeMap, expect: "labels", size: maxLabels, keys: labelKeyShape(), each: labelValueShape()},
			{kind: shapeText, expect: "a selector such as tier=canary,cloud!=aws", longest: selectorLimit, check: checkSelector},
		},
	}
}

func momentShape() *shape {
	const expect = "a moment such as 2026-05-01T20:00:00Z"
	return &shape{
		kind: shapeText, expect: expect, longest: 64, pattern: regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:Z|[+-][0-9]{2}:[0-9]{2})$`),
		check: func(text string) error {
			if _, err := time.Parse(time.RFC3339, text); err != nil {
				return fmt.Errorf("expected %s, found %q", expect, short(text))
			}
			return nil
		},
	}
}

func alertShape() *shape {
	text := func(expect, pattern string) *shape {
		return &shape{kind: shapeText, expect: expect, pattern: regexp.MustCompile(pattern), longest: 1024}
	}
	secret := func() *shape {
		return &shape{kind: shapeText, expect: "${file:PATH} or ${env:NAME}", check: checkToken, private: true, longest: 1024, pattern: tokenText}
	}
	address := &shape{
		kind: shapeText, expect: "https://…, http:// on this machine, ${file:PATH} or ${env:NAME}", private: true, longest: 2048,
		pattern: regexp.MustCompile(`^(?:\$\{(?:env:[A-Za-z_][A-Za-z0-9_]*|file:[^{}]+)\}|https://[^\s/@]+(?:/\S*)?|http://(?:localhost|127\.[0-9.]+|\[::1\])(?::[0-9]+)?(?:/\S*)?)$`),
	}
	mail := `^[^\s<>,;@"]+@[^\s<>,;@"]+$`
	return &shape{kind: shapeObject, expect: "a channel", fields: []field{
		{key: keyName, about: "Unique name; the type where left out.", shape: nameShape()},
		{key: keyType, about: "What it is.", required: true, shape: &shape{kind: shapeText, expect: "slack, webhook, email, telegram or github", oneOf: []string{
			string(AlertSlack), string(AlertWebhook), string(AlertEmail), string(AlertTelegram), string(AlertGitHub),
		}}},
		{key: keyMatch, about: "Which instances it tells of; all where left out. The monitor's own trouble goes to every channel.", shape: matchShape()},
		{key: keyKinds, about: "Which kinds of incidents it tells of; all where left out.", shape: &shape{
			kind: shapeList, expect: "a list of kinds", size: len(kinds()), each: &shape{kind: shapeText, expect: "one of " + strings.Join(kinds(), ", "), oneOf: kinds()},
		}},
		{key: keyURL, about: "Of slack and webhook. Slack's is a secret: by file or environment.", shape: address},
		{key: keySecret, about: "Of webhook: the key of the signature.", shape: secret()},
		{key: keyServer, about: "Of email: HOST:PORT.", shape: text("HOST:PORT", `^(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}$`)},
		{key: "tls", about: "Of email: starttls, tls from the first byte, or none, which is for this machine only.", fallback: "starttls", shape: &shape{
			kind: shapeText, expect: "starttls, tls or none", oneOf: []string{"starttls", "tls", "none"},
		}},
		{key: keyUser, about: "Of email: who signs in; nobody where left out.", shape: text("a user", `^\S+$`)},
		{key: keyPassword, about: "Of email.", shape: secret()},
		{key: keyFrom, about: "Of email.", shape: text("an e-mail address", mail)},
		{key: keyTo, about: "Of email.", shape: &shape{kind: shapeList, expect: "a list of e-mail addresses", size: 100, each: text("an e-mail address", mail)}},
		{key: keyToken, about: "Of telegram, the bot's; of github, one that may write issues.", shape: secret()},
		{key: keyChat, about: "Of telegram: the chat's id or @name, quoted.", shape: text("a chat's id or @name, such as '-1001234567890'", `^(?:-?[0-9]+|@[A-Za-z0-9_]+)$`)},
		{key: keyRepo, about: "Of github: OWNER/NAME.", shape: text("OWNER/NAME", `^[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}$`)},
		{key: keyLabels, about: "Of github: of the issues.", shape: &shape{kind: shapeList, expect: "a list of labels", size: 20, each: text("a label", `^\S(?:.{0,48}\S)?$`)}},
		{key: keyAPI, about: "Of telegram and github: another server, such as https://github.example.com/api/v3.", shape: text("https://…, or http:// on this machine", `^(?:https://[^\s@]+|http://(?:localhost|127\.[0-9.]+|\[::1\])(?::[0-9]+)?(?:/\S*)?)$`)},
	}}
}

// alertNeeds are the keys that a type needs and those that it may have.
func alertNeeds(t AlertType) (needs, may []string) {
	switch t {
	case AlertSlack:
		return []string{keyURL}, nil
	case AlertWebhook:
		return []string{keyURL, keySecret}, nil
	case AlertEmail:
		return []string{keyServer, keyFrom, keyTo}, []string{keyUser, keyPassword, "tls"}
	case AlertTelegram:
		return []string{keyToken, keyChat}, []string{keyAPI}
	default:
		return []string{keyRepo, keyToken}, []string{keyLabels, keyAPI}
	}
}

// addWatching takes the sections about watching in.
func (l *loader) addWatching(top datum, file string) {
	w := DefaultWatch()
	d := top.get(keyWatch)
	if j := d.get(keyJudge); j.set {
		w.Down, w.Of = judgeOf(j.text)
	}
	w.DegradedAfter = durationOf(d.get(keyDegradedAfter), w.DegradedAfter)
	w.DriftAfter = durationOf(d.get(keyDriftAfter), w.DriftAfter)
	w.CertBefore = durationOf(d.get(keyCertBefore), w.CertBefore)
	w.GroupWait = durationOf(d.get(keyGroupWait), w.GroupWait)
	w.Keep = durationOf(d.get(keyKeep), w.Keep)
	w.KeepLatency = durationOf(d.get(keyKeepLatency), w.KeepLatency)
	l.found.Watch = w
	for _, one := range top.get(keyMaintenance).list {
		if one.set && !one.broken {
			l.addMaintenance(one)
		}
	}
	seen := map[string]Position{}
	for _, one := range top.get(keyAlerts).list {
		if one.set && !one.broken {
			l.addAlert(one, file, seen)
		}
	}
}

func (l *loader) addMaintenance(d datum) {
	m := Maintenance{Match: matchOf(d.get(keyMatch)), Reason: d.get(keyReason).text, Source: d.at}
	from, to, weekly := d.get(keyFrom), d.get(keyTo), d.get(keyWeekly)
	switch {
	case weekly.set:
		m.Weekly, _ = ParseWeekly(weekly.text) // as the shape has checked
	case !from.set || !to.set:
		l.faults.add(d.at, "maintenance: expected the keys from and to, or weekly, found less", "Write {from: 2026-05-01T20:00:00Z, to: 2026-05-01T22:00:00Z}, or {weekly: Sun 02:00-04:00}.")
		return
	default:
		m.From, _ = time.Parse(time.RFC3339, from.text)
		m.To, _ = time.Parse(time.RFC3339, to.text)
		if !m.From.Before(m.To) {
			l.faults.add(to.at, "maintenance: expected an end after the begin "+from.text+", found "+to.text, "")
			return
		}
	}
	l.found.Maintenance = append(l.found.Maintenance, m)
}

// matchOf reads labels or a selector's text.
func matchOf(d datum) Selector {
	switch {
	case d.isText:
		s, _ := ParseSelector(d.text) // as the shape has checked
		return s
	case d.set:
		labels := map[string]string{}
		for key, value := range d.members {
			labels[key] = value.text
		}
		return selectorOf(labels)
	}
	return Selector{}
}

func (l *loader) addAlert(d datum, file string, seen map[string]Position) {
	a := Alert{
		Type: AlertType(d.get(keyType).text), Match: matchOf(d.get(keyMatch)), Source: d.at,
		Server: d.get(keyServer).text, User: d.get(keyUser).text, From: d.get(keyFrom).text, Security: cmp.Or(d.get("tls").text, "starttls"),
		Chat: d.get(keyChat).text, Repo: d.get(keyRepo).text, API: d.get(keyAPI).text,
	}
	a.Name = cmp.Or(d.get(keyName).text, string(a.Type))
	where := "alerts (" + a.Name + "): "
	needs, may := alertNeeds(a.Type)
	for _, key := range needs {
		if !d.get(key).set {
			l.faults.add(d.at, fmt.Sprintf("%sexpected the key %s for the type %s, found none", where, key, a.Type), "docs/fleet.md, Alerts, has an example of each type.")
		}
	}
	common := []string{keyName, keyType, keyMatch, keyKinds}
	for key, member := range d.members {
		if !slices.Contains(slices.Concat(common, needs, may), key) {
			l.faults.add(member.at, fmt.Sprintf("%sexpected none of the key %s for the type %s, found it", where, key, a.Type), "Remove it.")
		}
	}
	if before, twice := seen[a.Name]; twice {
		l.faults.add(d.at, fmt.Sprintf("expected each channel's name once, found %s again", a.Name), "The other one is at "+before.String()+". Give this one a name: {name: …}.")
	}
	seen[a.Name] = d.at
	for _, kind := range d.get(keyKinds).list {
		a.Kinds = append(a.Kinds, Kind(kind.text))
	}
	for _, to := range d.get(keyTo).list {
		a.To = append(a.To, to.text)
	}
	for _, label := range d.get(keyLabels).list {
		a.Labels = append(a.Labels, label.text)
	}
	if u := d.get(keyURL); u.set {
		switch {
		case tokenText.MatchString(u.text):
			a.URL = l.secret(u, "the channel "+a.Name, file, where+"url: ")
		case a.Type == AlertSlack:
			l.faults.add(u.at, where+"url: expected ${file:PATH} or ${env:NAME}, found other text, which is not shown: who knows it may write to the channel", "Write the address into a file that git ignores, mode 0600: url: ${file:secrets/slack.url}")
		default:
			a.URL = Token{text: u.text, literal: true, instance: "the channel " + a.Name, at: u.at}
		}
	}
	for _, key := range []string{keySecret, keyPassword, keyToken} {
		if s := d.get(key); s.set {
			a.Secret = l.secret(s, "the channel "+a.Name, file, where+key+": ")
		}
	}
	if a.Type == AlertEmail && (a.User == "") != a.Secret.IsZero() {
		l.faults.add(d.at, where+"expected both user and password, or none of them", "")
	}
	if a.Type == AlertEmail && a.Security == "none" && !onThisMachine(a.Server) {
		l.faults.add(d.get("tls").at, where+"expected starttls or tls for another machine, found none: everybody on the way could read it", "")
	}
	l.found.Alerts = append(l.found.Alerts, a)
}

func onThisMachine(server string) bool {
	return isLoopback("smtp://" + server)
}

// secret is a reference to one that is checked already; what names whose it is.
func (l *loader) secret(d datum, whose, file, where string) Token {
	t := Token{text: d.text, instance: whose, at: d.at, getenv: l.o.Getenv}
	name, isFile := tokenFile(d.text)
	if !isFile {
		t.env = d.text[len("${env:") : len(d.text)-1]
		return t
	}
	t.dir, t.file = l.o.SecretDir, path.Join(path.Dir(file), name)
	if !fs.ValidPath(t.file) {
		l.faults.explained(d.at, where, outside(name))
	}
	return t
}
