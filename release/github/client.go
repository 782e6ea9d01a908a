// Package github is the release package's places outside, at GitHub: Refs over
// the git database API, Forge over issues, releases and pull requests, Packages
// over the packages API.
//
// Every call goes through transport, which knows the host's manners: it waits
// where GitHub asks for that, repeats what can be repeated without harm, and
// never repeats a write whose fate is unknown. Errors are made in one place,
// fail, and say which right is missing, because GitHub itself answers 404 there.
package github

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	gh "github.com/google/go-github/v62/github"

	"github.com/keboola/agnes-the-ai-analyst/internal/pause"
	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
	"github.com/keboola/agnes-the-ai-analyst/release"
)

// DefaultAPI is where GitHub itself answers; an enterprise server answers at
// https://HOST/api/v3.
const DefaultAPI = "https://api.github.com"

// Options are what a Client needs to know. Only Repo is required.
type Options struct {
	API   string        // DefaultAPI when empty; http on this machine only
	Repo  string        // owner/name
	Token redact.Secret // empty: public data only
	HTTP  *http.Client  // its Transport is used; nil is a new one
	Log   *slog.Logger  // hears of waits and repetitions; nil is silence

	// MaxWait bounds how long one call waits for rate limits, all its waits
	// together: 15 minutes when zero. Beyond it the call fails as RateLimited.
	MaxWait time.Duration
	// AttemptTimeout bounds one request with its answer: 30 seconds when zero.
	AttemptTimeout time.Duration
	// Now and Sleep are the clock; nil is the real one. Sleep returns ctx's error
	// when it ended first.
	Now   func() time.Time
	Sleep func(ctx context.Context, d time.Duration) error
}

// Client speaks to one repository's API. It is safe for concurrent use and is a
// release.Forge.
type Client struct {
	gh          *gh.Client
	api         *url.URL
	owner, repo string
	token       bool
	log         *slog.Logger
	now         func() time.Time
	sleep       func(context.Context, time.Duration) error

	mu       sync.Mutex
	readable bool                   // the repository was seen with this token
	tags     map[string]release.Tag // by id; objects never change
}

var _ release.Forge = (*Client)(nil)

var repoText = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}$`)

// New returns a Client. It makes no call.
func New(o Options) (*Client, error) {
	if !repoText.MatchString(o.Repo) {
		return nil, problem.New(problem.Usage, fmt.Sprintf("expected a GitHub repository OWNER/NAME, found %q", o.Repo),
			"release-bot … --repo OWNER/NAME, or set GITHUB_REPOSITORY")
	}
	owner, repo, _ := strings.Cut(o.Repo, "/")
	api, err := parseAPI(cmp.Or(o.API, DefaultAPI))
	if err != nil {
		return nil, err
	}
	c := &Client{
		api: api, owner: owner, repo: repo, token: o.Token != "",
		log: o.Log, now: o.Now, sleep: o.Sleep,
		tags: map[string]release.Tag{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.sleep == nil {
		c.sleep = pause.For
	}
	base := http.DefaultTransport
	if o.HTTP != nil && o.HTTP.Transport != nil {
		base = o.HTTP.Transport
	}
	c.gh = gh.NewClient(&http.Client{
		Transport: &transport{
			base: base, host: api.Host, token: o.Token, log: c.log, now: c.now, sleep: c.sleep,
			maxWait: cmp.Or(o.MaxWait, 15*time.Minute), timeout: cmp.Or(o.AttemptTimeout, 30*time.Second),
			jitter: rand.Float64,
		},
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			// A followed redirect turns some POSTs into GETs: a write that quietly
			// became a read. fail says where the repository went.
			if m := via[0].Method; m != http.MethodGet || len(via) > 5 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	})
	c.gh.BaseURL = api
	c.gh.UserAgent = "release-bot"
	return c, nil
}

// parseAPI admits https anywhere, and http where nobody else can listen.
func parseAPI(s string) (*url.URL, error) {
	refuse := func(found string) error {
		return problem.New(problem.Usage, "expected the GitHub API as an https URL without user, query or fragment, found "+found,
			"release-bot … --api-url https://api.github.com, or https://HOST/api/v3 of an enterprise server")
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, refuse("text that is no URL") // its text may hold a password
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Host == "" {
		return nil, refuse(quoteURL(u))
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	local := host == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return nil, refuse(quoteURL(u))
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + "/"
	u.RawPath = ""
	return u, nil
}

// quoteURL shows a URL without what may be secret in it.
func quoteURL(u *url.URL) string {
	return fmt.Sprintf("%q", (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String())
}

// Repo returns owner/name.
func (c *Client) Repo() string { return c.owner + "/" + c.repo }

// path returns a path below the repository, relative to the API.
func (c *Client) path(format string, args ...any) string {
	return fmt.Sprintf("repos/%s/%s/", c.owner, c.repo) + fmt.Sprintf(format, args...)
}

// do makes one call; in and out may be nil. The error is go-github's or the
// transport's: callers give it to fail.
func (c *Client) do(ctx context.Context, method, path string, in, out any) (*gh.Response, error) {
	req, err := c.gh.NewRequest(method, path, in)
	if err != nil {
		return nil, fmt.Errorf("make the request %s %s: %w", method, path, err)
	}
	return c.gh.Do(ctx, req, out)
}

var nextLink = regexp.MustCompile(`<([^>]+)>\s*;[^,]*\brel="?next"?`)

// maxPages is a hundred thousand things: a list that is longer goes in circles.
const maxPages = 1000

// list reads all pages of a list. GitHub names the next page by a Link header,
// whose URL may have another path than was asked for; the number of entries says
// nothing, because some lists ignore per_page.
func list[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	var all []T
	for range maxPages {
		var page []T
		resp, err := c.do(ctx, http.MethodGet, path, nil, &page)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		m := nextLink.FindStringSubmatch(resp.Header.Get("Link"))
		if m == nil {
			return all, nil
		}
		next, err := url.Parse(m[1])
		if err != nil || next.Host != c.api.Host || next.Scheme != c.api.Scheme {
			return nil, problem.New(problem.Unavailable, fmt.Sprintf("expected the next page of %s at %s, found a link to elsewhere", path, c.api.Host),
				"check GITHUB_API_URL: it must be the address that the server itself uses in its links")
		}
		path = next.String()
	}
	return nil, problem.New(problem.Unavailable, fmt.Sprintf("expected at most %d pages of %s, found more", maxPages, path), "run the command again")
}

// visible reports whether this token can see the repository, so that a 404 of
// something in it means what it says. GitHub answers 404 for a missing right.
func (c *Client) visible(ctx context.Context) error {
	c.mu.Lock()
	known := c.readable
	c.mu.Unlock()
	if known {
		return nil
	}
	var repo struct{}
	if _, err := c.do(ctx, http.MethodGet, "repos/"+c.Repo(), nil, &repo); err != nil {
		return c.fail(err, "show the repository "+c.Repo(), ReadContents)
	}
	c.mu.Lock()
	c.readable = true
	c.mu.Unlock()
	return nil
}

// messages are what an error's body says, for people and for the few rules that
// only the text tells.
func messages(e *gh.ErrorResponse) string {
	parts := []string{}
	if e.Message != "" {
		parts = append(parts, strings.Join(strings.Fields(e.Message), " "))
	}
	for _, one := range e.Errors {
		switch {
		case one.Message != "":
			parts = append(parts, one.Message)
		case one.Code != "":
			parts = append(parts, strings.Trim(one.Resource+" "+one.Field+" "+one.Code, " "))
		}
	}
	text := strings.Join(parts, "; ")
	if len(text) > 500 {
		text = text[:500] + "…"
	}
	return text
}

// errorBody is the part of an error's body that the transport looks at.
type errorBody struct {
	Message string `json:"message"`
	Docs    string `json:"documentation_url"`
}

func readError(b []byte) errorBody {
	var e errorBody
	_ = json.Unmarshal(b, &e) // a gateway answers with HTML: then there is nothing to read
	return e
}
