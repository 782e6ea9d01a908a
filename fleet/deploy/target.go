package deploy

import (
	"fmt"
	"net"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// DefaultDir is where an instance lives on a host that says nothing else.
const DefaultDir = "/opt/agnes"

// Target is a host that is reached over SSH, and the instance's folder there.
type Target struct {
	User string
	Host string // a name or an address, IPv6 without brackets
	Port int    // 22 by default
	Dir  string // absolute and clean
}

var (
	// A name must not be taken for an option or for a shell's syntax by a program
	// that it is passed to.
	targetUser = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
	targetHost = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$`)
)

// ParseTarget reads ssh://USER@HOST[:PORT][/DIR]. The user is required: a default
// would differ between the people and the machines that deploy.
func ParseTarget(text string) (Target, error) {
	bad := func(expected, found string) error {
		return problem.New(problem.Usage, fmt.Sprintf("expected %s in the host address, found %q", expected, found),
			"write it as ssh://USER@HOST[:PORT][/DIR], such as ssh://agnes@203.0.113.7/opt/agnes")
	}
	u, err := url.Parse(text)
	if err != nil {
		return Target{}, bad("an address ssh://USER@HOST[:PORT][/DIR]", withoutSecret(text))
	}
	switch _, password := u.User.Password(); {
	case u.Scheme != "ssh" || u.Opaque != "":
		return Target{}, bad("ssh://", withoutSecret(text))
	case password:
		return Target{}, bad("a user without a password (hosts are reached with keys)", u.Redacted())
	case !targetUser.MatchString(u.User.Username()):
		return Target{}, bad("a user name before @", u.User.Username())
	case u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(text, "?") || strings.HasSuffix(text, "#"):
		return Target{}, bad("no query or fragment", text)
	}
	t := Target{User: u.User.Username(), Host: u.Hostname(), Port: 22, Dir: DefaultDir}
	if ip := net.ParseIP(t.Host); !targetHost.MatchString(t.Host) && ip == nil || ip == nil && strings.HasPrefix(u.Host, "[") {
		return Target{}, bad("a host name or an address", t.Host)
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if t.Port, err = strconv.Atoi(port); err != nil || t.Port < 1 || t.Port > 65535 {
			return Target{}, bad("a port from 1 to 65535", port)
		}
	}
	if strings.IndexFunc(u.Path, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0 || strings.Contains(u.Path+"/", "/../") {
		return Target{}, bad("an absolute folder without .. and control characters", u.Path)
	}
	if dir := path.Clean("/" + u.Path); dir != "/" {
		t.Dir = dir
	}
	return t, nil
}

// withoutSecret cuts what may be a password out of text that is no URL.
func withoutSecret(text string) string {
	scheme, rest, _ := strings.Cut(text, "://")
	if at := strings.LastIndex(rest, "@"); at >= 0 && strings.Contains(rest[:at], ":") {
		return scheme + "://…" + rest[at:]
	}
	return text
}

// Address is what a connection is opened to: host:port.
func (t Target) Address() string { return net.JoinHostPort(t.Host, strconv.Itoa(t.Port)) }

// String returns the address that ParseTarget reads as t.
func (t Target) String() string {
	host := t.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if t.Port != 22 {
		host = t.Address()
	}
	return (&url.URL{Scheme: "ssh", User: url.User(t.User), Host: host, Path: t.Dir}).String()
}
