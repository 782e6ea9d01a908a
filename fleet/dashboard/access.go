package dashboard

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// Access says who may see the page and who may give orders. With the zero Access
// everybody who reaches the page reads it, and nobody changes anything.
type Access struct {
	// File holds the logins, as `htpasswd -B` writes them: NAME:HASH with bcrypt. It
	// is read at each login, so that a change counts at once.
	File string

	// Once is a password of the user Operator, for whoever started the page and
	// reads it on the terminal. It opens one session.
	Once redact.Secret

	// Trusted are the addresses of reverse proxies: they say whom a request comes from.
	Trusted []netip.Prefix

	// Header names the user that such a proxy has signed in.
	Header string

	// Closed means that reading needs a login, too.
	Closed bool

	// Hosts are names by which the page is reached beside localhost and addresses:
	// a page of another site must not get here through a name of its own.
	Hosts []string

	// Secure means that these names are reached by https alone.
	Secure bool
}

// Orders reports whether anybody could sign in.
func (a Access) Orders() bool { return a.File != "" || a.Once != "" || a.Header != "" }

// Operator is the name of whoever has the password for one session.
const Operator = "operator"

const (
	sessionCookie  = "agnes_fleet_session"
	sessionLasts   = 12 * time.Hour
	maxLoginFile   = 1 << 20
	maxName        = 64
	maxPassword    = 72 // bcrypt reads no more
	loginsAtOnce   = 2  // a hash takes a core for some 50 ms
	rememberLogins = 64
)

// userName is what a login may be called.
const userName = `^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$`

// session is what the cookie holds.
type session struct {
	User  string    `json:"u"`
	Until time.Time `json:"t"`
	Nonce string    `json:"n"`
}

// keys sign sessions and forms. They live as long as the process: a restart signs
// everybody out.
type keys struct {
	secret []byte
	names  *regexp.Regexp
	access Access
	decoy  []byte // a hash for names that do not exist, so that they take as long

	mu       sync.Mutex
	once     bool                 // the password for one session was used
	ended    map[string]time.Time // sessions that were signed out, by nonce, until they would have ended
	known    map[[32]byte]string  // of programs that sign in with each request
	attempts map[string]*attempts // by address
	all      *rate.Limiter
	room     chan struct{}
}

type attempts struct {
	limit *rate.Limiter
	last  time.Time
}

func newKeys(a Access) (*keys, error) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	k := &keys{
		secret: secret, names: regexp.MustCompile(userName), access: a,
		ended: map[string]time.Time{}, known: map[[32]byte]string{}, attempts: map[string]*attempts{},
		all: rate.NewLimiter(2, 30), room: make(chan struct{}, loginsAtOnce),
	}
	if a.File != "" {
		if _, err := k.logins(); err != nil {
			return nil, err
		}
		var err error
		if k.decoy, err = bcrypt.GenerateFromPassword(secret[:16], bcrypt.DefaultCost); err != nil {
			return nil, fmt.Errorf("make the page's keys: %w", err)
		}
	}
	return k, nil
}

// logins reads the file.
func (k *keys) logins() (map[string]string, error) {
	next := "Make it: agnesctl fleet passwd NAME --auth-file " + k.access.File
	unread := func(err error) error {
		if errors.Is(err, fs.ErrPermission) {
			next = "Let the page's user read it: sudo chown USER " + k.access.File
		}
		return problem.Wrap(err, problem.Usage, fmt.Sprintf("Expected the page's logins in %s, but it cannot be read.", k.access.File), next)
	}
	info, err := os.Stat(k.access.File)
	if err != nil {
		return nil, unread(err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, problem.New(problem.Refused, fmt.Sprintf("Expected that nobody else can write %s, found mode %04o.", k.access.File, info.Mode().Perm()), "chmod 600 "+k.access.File)
	}
	if info.Size() > maxLoginFile {
		return nil, problem.New(problem.Usage, fmt.Sprintf("Expected at most %d bytes in %s, found %d.", maxLoginFile, k.access.File, info.Size()), next)
	}
	content, err := os.ReadFile(k.access.File)
	if err != nil {
		return nil, unread(err)
	}
	found := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, _ := strings.Cut(line, ":")
		if _, err := bcrypt.Cost([]byte(hash)); err != nil || !k.names.MatchString(name) {
			return nil, problem.New(problem.Usage, fmt.Sprintf("Expected NAME:HASH with bcrypt in line %d of %s.", n, k.access.File), next)
		}
		found[name] = hash
	}
	if len(found) == 0 {
		return nil, problem.New(problem.Usage, fmt.Sprintf("Expected a login in %s, found none.", k.access.File), next)
	}
	return found, nil
}

// HashLogin returns the line of a password file for a login.
func HashLogin(name string, password redact.Secret) (string, error) {
	if !regexp.MustCompile(userName).MatchString(name) {
		return "", problem.New(problem.Usage, fmt.Sprintf("Expected a name of letters, digits and . _ @ + -, %d at most, found %q.", maxName, name), "Take another name.")
	}
	if n := len(password.Reveal()); n < 12 || n > maxPassword {
		return "", problem.New(problem.Usage, fmt.Sprintf("Expected a password of 12 to %d bytes, found %d.", maxPassword, n), "Take another one.")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password.Reveal()), bcrypt.DefaultCost)
	if err != nil {
		return "", fmt.Errorf("hash the password: %w", err)
	}
	return name + ":" + string(hash), nil
}

// errLogin is of a name or password that is wrong: which one, nobody is told.
var errLogin = errors.New("the name or the password is wrong")

// check says whether a password is a user's. It is slow on purpose.
func (k *keys) check(user, password string) error {
	if k.access.Once != "" && user == Operator {
		k.mu.Lock()
		defer k.mu.Unlock()
		if !k.once && subtle.ConstantTimeCompare([]byte(password), []byte(k.access.Once.Reveal())) == 1 {
			k.once = true
			return nil
		}
		return errLogin
	}
	hash, found := k.decoy, false
	if k.access.File != "" {
		all, err := k.logins()
		if err != nil {
			return err
		}
		if h, ok := all[user]; ok {
			hash, found = []byte(h), true
		}
	}
	k.room <- struct{}{}
	defer func() { <-k.room }()
	if len(password) > maxPassword {
		password = ""
	}
	if bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil || !found {
		return errLogin
	}
	return nil
}

// wait says how long an address has to wait for its next try at a login.
func (k *keys) wait(address string, now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.attempts) > 4096 {
		for a, t := range k.attempts {
			if now.Sub(t.last) > 10*time.Minute {
				delete(k.attempts, a)
			}
		}
	}
	t := k.attempts[address]
	if t == nil {
		t = &attempts{limit: rate.NewLimiter(rate.Every(10*time.Second), 5)}
		if len(k.attempts) <= 8192 {
			k.attempts[address] = t
		}
	}
	t.last = now
	for _, l := range []*rate.Limiter{t.limit, k.all} {
		r := l.ReserveN(now, 1)
		if d := r.DelayFrom(now); d > 0 {
			r.CancelAt(now)
			return d
		}
	}
	return 0
}

// stamp ends the sessions of a user whose password has changed, or who is gone.
func (k *keys) stamp(user string) (string, bool) {
	if user == Operator && k.access.Once != "" {
		return "once", true
	}
	if k.access.File == "" {
		return "", false
	}
	all, err := k.logins()
	hash, ok := all[user]
	return hash, err == nil && ok
}

func (k *keys) mac(parts ...string) []byte {
	m := hmac.New(sha256.New, k.secret)
	for _, p := range parts {
		fmt.Fprintf(m, "%d:%s", len(p), p)
	}
	return m.Sum(nil)
}

// open returns the cookie of a new session.
func (k *keys) open(user string, now time.Time) (string, error) {
	stamp, ok := k.stamp(user)
	if !ok {
		return "", errLogin
	}
	text, err := json.Marshal(session{user, now.Add(sessionLasts).UTC(), rand.Text()})
	if err != nil {
		return "", err
	}
	payload := base64.RawURLEncoding.EncodeToString(text)
	return payload + "." + base64.RawURLEncoding.EncodeToString(k.mac("session", payload, stamp)), nil
}

// read returns the session of a cookie.
func (k *keys) read(cookie string, now time.Time) (session, bool) {
	payload, signed, ok := strings.Cut(cookie, ".")
	if !ok || len(cookie) > 1024 {
		return session{}, false
	}
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return session{}, false
	}
	var s session
	if json.Unmarshal(text, &s) != nil {
		return session{}, false
	}
	stamp, known := k.stamp(s.User)
	got, err := base64.RawURLEncoding.DecodeString(signed)
	if err != nil || !known || !hmac.Equal(got, k.mac("session", payload, stamp)) || !now.Before(s.Until) {
		return session{}, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	_, over := k.ended[s.Nonce]
	return s, !over
}

// end signs a visitor out, also for whoever has copied the cookie.
func (k *keys) end(v visitor) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.ended, func(_ string, until time.Time) bool { return time.Now().After(until) })
	k.ended[v.Nonce] = v.Until
}

// form is the token that each form of a user carries.
func (k *keys) form(v visitor) string {
	return base64.RawURLEncoding.EncodeToString(k.mac("form", v.User, v.Nonce))
}

// basic signs a program in that sends its password with each request. What was
// found right is remembered, for a hash at each scrape would cost too much.
func (k *keys) basic(user, password string, address netip.Addr) bool {
	stamp, ok := k.stamp(user)
	if !ok || user == Operator && k.access.Once != "" {
		return false
	}
	key := [32]byte(k.mac("basic", user, password))
	k.mu.Lock()
	was, known := k.known[key]
	k.mu.Unlock()
	if known && was == stamp {
		return true
	}
	if k.wait("program "+counted(address), time.Now()) > 0 || k.check(user, password) != nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.known) >= rememberLogins {
		clear(k.known)
	}
	k.known[key] = stamp
	return true
}

// counted is what attempts at a login are counted by: an address, of IPv6 the whole
// network that a customer has.
func counted(addr netip.Addr) string {
	if network, err := addr.Prefix(64); err == nil && addr.Is6() {
		return network.String()
	}
	return addr.String()
}

// peer returns the address that a request comes from.
func peer(remote string) netip.Addr {
	host, _, err := net.SplitHostPort(remote)
	addr, parsed := netip.ParseAddr(cmp.Or(host, remote))
	if err != nil && parsed != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}

func (a Access) trusts(addr netip.Addr) bool {
	for _, p := range a.Trusted {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
