package githubtest

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// restorable is how long a deleted version can be brought back
// (docs.github.com/packages/learn-github-packages/deleting-and-restoring-a-package).
const restorable = 30 * 24 * time.Hour

// manyDownloads keeps a public version from being deleted (the same page).
const manyDownloads = 5000

// Package is a container package: the registry's HOST/OWNER/NAME.
type Package struct {
	Private bool // set before the first call

	s           *Server
	owner, name string
	versions    map[int64]*version
	digests     map[string]*version
	tags        map[string]*version
}

type version struct {
	id               int64
	digest, media    string
	raw              []byte
	tags             []string // in the order in which they came; kept when deleted
	created, updated time.Time
	deleted          time.Time // zero: it is there
	downloads        int
	since, gone      lagging
}

// Version is what tests see of a package's version.
type Version struct {
	ID               int64
	Digest           string
	Tags             []string
	Created, Updated time.Time
	Deleted          bool
}

func (v *version) show() Version {
	return Version{ID: v.id, Digest: v.digest, Tags: slices.Clone(v.tags), Created: v.created, Updated: v.updated, Deleted: !v.deleted.IsZero()}
}

// Package returns the package OWNER/NAME, an empty one at first. A name may hold
// slashes.
func (s *Server) Package(owner, name string) *Package {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pkg(owner, name)
}

func (s *Server) pkg(owner, name string) *Package {
	key := strings.ToLower(owner + "/" + name)
	if s.packages[key] == nil {
		s.owner(owner)
		s.packages[key] = &Package{
			s: s, owner: owner, name: name,
			versions: map[int64]*version{}, digests: map[string]*version{}, tags: map[string]*version{},
		}
	}
	return s.packages[key]
}

// Push writes a manifest as a registry's client does, without looking whether
// what it names is there, and points tags at it.
func (p *Package) Push(mediaType string, raw []byte, tags ...string) Version {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	v := p.push(mediaType, raw)
	for _, tag := range tags {
		p.point(tag, v)
	}
	return v.show()
}

// Versions returns all versions, newest first, deleted ones at their place.
func (p *Package) Versions() []Version {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	var all []Version
	for _, v := range p.sorted() {
		all = append(all, v.show())
	}
	return all
}

// Tag returns the digest that a tag points at, or nothing.
func (p *Package) Tag(tag string) string {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if v := p.tags[tag]; v != nil {
		return v.digest
	}
	return ""
}

// Manifest returns a manifest by its digest, or nil.
func (p *Package) Manifest(digest string) []byte {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if v := p.digests[digest]; v != nil {
		return slices.Clone(v.raw)
	}
	return nil
}

// SetCreated changes when a version was pushed.
func (p *Package) SetCreated(id int64, at time.Time) {
	p.change(id, func(v *version) { v.created, v.updated = at, at })
}

// SetDownloads changes how often a version was downloaded.
func (p *Package) SetDownloads(id int64, n int) { p.change(id, func(v *version) { v.downloads = n }) }

func (p *Package) change(id int64, f func(*version)) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if v := p.versions[id]; v != nil {
		f(v)
	}
}

func (p *Package) push(mediaType string, raw []byte) *version {
	sum := sha256.Sum256(raw)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if v := p.digests[digest]; v != nil {
		return v
	}
	now := p.s.stamp()
	v := &version{id: p.s.id(), digest: digest, media: mediaType, raw: slices.Clone(raw), created: now, updated: now, since: p.s.mark()}
	p.versions[v.id], p.digests[digest] = v, v
	return v
}

// point moves a tag. Neither version's updated_at changes: the API's times say
// nothing about tags (observed).
func (p *Package) point(tag string, v *version) {
	old := p.tags[tag]
	if old == v {
		return
	}
	if old != nil {
		old.tags = slices.DeleteFunc(old.tags, func(t string) bool { return t == tag })
	}
	p.tags[tag] = v
	v.tags = append(v.tags, tag)
}

// sorted returns the versions as lists do: newest first.
func (p *Package) sorted() []*version {
	return slices.SortedFunc(maps.Values(p.versions), func(a, b *version) int {
		if c := b.created.Compare(a.created); c != 0 {
			return c
		}
		return int(b.id - a.id)
	})
}

func packageRoutes() []route {
	var all []route
	for _, owner := range []string{"/orgs/{org}", "/users/{username}"} {
		base := owner + "/packages/{package_type}/{package_name}/versions"
		one := base + "/{package_version_id}"
		all = append(all,
			route{"GET", base, need{}, withPackage(Read, listVersions)},
			route{"GET", one, need{}, withPackage(Read, withVersion(func(c *call, p *Package, v *version) answer { return ok(p.showVersion(v)) }))},
			route{"DELETE", one, need{}, withPackage(Admin, withVersion(deleteVersion))},
			route{"POST", one + "/restore", need{}, withPackage(Admin, restoreVersion)},
		)
	}
	return all
}

// withPackage finds the package. Who may not do what the call does is told that
// there is no such package.
func withPackage(level Access, handle func(*call, *Package) answer) func(*call) answer {
	return func(c *call) answer {
		kind, login := "Organization", c.r.PathValue("org")
		if login == "" {
			kind, login = "User", c.r.PathValue("username")
		}
		o := c.s.owners[strings.ToLower(login)]
		p := c.s.packages[strings.ToLower(login+"/"+c.r.PathValue("package_name"))]
		if c.r.Header.Get("Authorization") == "" { // even for public packages (observed)
			return refusal(http.StatusUnauthorized, "Requires authentication")
		}
		if c.grant.Scopes != nil && !slices.ContainsFunc(c.grant.Scopes, func(s string) bool { return strings.HasSuffix(s, ":packages") }) {
			return refusal(http.StatusForbidden, "You need at least read:packages scope to get a package's versions.")
		}
		if o == nil || o.kind != kind || p == nil || c.r.PathValue("package_type") != "container" || c.grant.Packages < level {
			return refusal(http.StatusNotFound, "Package not found.")
		}
		return handle(c, p)
	}
}

func withVersion(handle func(*call, *Package, *version) answer) func(*call, *Package) answer {
	return func(c *call, p *Package) answer {
		v := p.versions[c.number("package_version_id")]
		if v == nil || !v.deleted.IsZero() {
			return refusal(http.StatusNotFound, "Package version not found.")
		}
		return handle(c, p, v)
	}
}

func (p *Package) showVersion(v *version) object {
	base := p.s.URL + "/packages/container/" + p.name
	tags := v.tags
	if tags == nil {
		tags = []string{}
	}
	return object{
		"id": v.id, "name": v.digest, "url": base, "package_html_url": base, "html_url": base, "created_at": when(v.created), "updated_at": when(v.updated),
		"metadata": object{"package_type": "container", "container": object{"tags": slices.Clone(tags)}},
	}
}

func listVersions(c *call, p *Package) answer {
	c.s.listed()
	deleted := c.r.URL.Query().Get("state") == "deleted"
	var found []*version
	for _, v := range p.sorted() {
		there := v.deleted.IsZero()
		if late := c.s.lag > 0; late {
			there = there && c.s.shows(v.since) || !there && !c.s.shows(v.gone)
		}
		if there != deleted && (there || !v.deleted.IsZero()) {
			found = append(found, v)
		}
	}
	return pages(c, found, p.showVersion)
}

// deleteVersion keeps what GitHub keeps, and says so in its words (observed; the
// downloads are documented on the page that restorable names).
func deleteVersion(c *call, p *Package, v *version) answer {
	if !p.Private && v.downloads > manyDownloads {
		return refusal(http.StatusBadRequest, "Publicly visible package versions with more than 5000 downloads cannot be deleted. Contact GitHub support for further assistance.")
	}
	last := len(v.tags) > 0
	for _, other := range p.versions {
		if other != v && other.deleted.IsZero() && len(other.tags) > 0 {
			last = false
		}
	}
	if last {
		return refusal(http.StatusBadRequest, "You cannot delete the last tagged version of a package. You must delete the package instead.")
	}
	for _, tag := range v.tags {
		delete(p.tags, tag)
	}
	delete(p.digests, v.digest)
	v.deleted, v.gone = c.s.stamp(), c.s.mark()
	return answer{status: http.StatusNoContent}
}

// restoreVersion brings a version back with those of its tags that nothing else
// took meanwhile.
func restoreVersion(c *call, p *Package) answer {
	v := p.versions[c.number("package_version_id")]
	if v == nil || v.deleted.IsZero() || c.s.now().Sub(v.deleted) > restorable || p.digests[v.digest] != nil {
		return refusal(http.StatusNotFound, "Package version not found.")
	}
	v.deleted, v.since = time.Time{}, c.s.mark()
	p.digests[v.digest] = v
	v.tags = slices.DeleteFunc(v.tags, func(tag string) bool { return p.tags[tag] != nil })
	for _, tag := range v.tags {
		p.tags[tag] = v
	}
	return answer{status: http.StatusNoContent}
}
