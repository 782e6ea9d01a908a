package server

import (
	"fmt"
	"html/template"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/keboola/agnes-the-ai-analyst/internal/problem"
)

// setupGate keeps a fresh instance in setup mode: until an admin exists, only
// what is needed to create one answers. The operator, who may restart, replace
// and back up any instance, is let through to what that takes.
func (s *Server) setupGate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if !s.opt.Instance.SetupRequired() {
			return next(c)
		}
		switch c.Request().URL.Path {
		case "/setup", "/auth/bootstrap", "/api/health", "/livez", "/readyz", "/api/version":
			return next(c)
		case "/api/health/details", "/api/admin/backup", "/api/admin/backups", "/api/admin/drain":
			if callerOf(c.Request().Context()).Operator() {
				return next(c)
			}
		}
		if c.Request().Method == http.MethodGet && strings.Contains(c.Request().Header.Get("Accept"), "text/html") {
			return c.Redirect(http.StatusSeeOther, "/setup")
		}
		return problem.New(problem.Unavailable, "This instance has no admin yet.",
			`Create one: POST /auth/bootstrap {"email":"…","password":"…"}; from another machine add the header X-Setup-Token with the token from the log.`).
			WithCode("setup_required")
	}
}

// setupPage tells a person with a browser which command comes next.
func (s *Server) setupPage(c echo.Context) error {
	var b strings.Builder
	err := setupTemplate().Execute(&b, map[string]any{
		"Needed": s.opt.Instance.SetupRequired(),
		"URL":    fmt.Sprintf("%s://%s", c.Scheme(), c.Request().Host),
		"Token":  c.QueryParam("token") != "",
	})
	if err != nil {
		return err
	}
	c.Response().Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	return c.HTML(http.StatusOK, b.String())
}

func setupTemplate() *template.Template {
	return template.Must(template.New("setup").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Set up Agnes</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem;color-scheme:light dark}pre{padding:1rem;overflow:auto;border:1px solid #8888;border-radius:6px}</style></head>
<body><h1>Agnes</h1>
{{if .Needed}}<p>This instance is running and has no admin yet. Create one and load the first tables with one command in a terminal:</p>
<pre>agnesctl instance setup --url {{.URL}} --email you@company.com --source csv --csv-dir /path/to/files{{if .Token}} --setup-token TOKEN{{end}}</pre>
{{if .Token}}<p>TOKEN is the text behind <code>token=</code> in this page's address.</p>{{end}}
<p>Or over HTTP:</p>
<pre>curl -X POST {{.URL}}/auth/bootstrap \
  -H "Content-Type: application/json" \{{if .Token}}
  -H "X-Setup-Token: TOKEN" \{{end}}
  -d '{"email":"you@company.com","password":"at least 10 characters"}'</pre>
{{else}}<p>This instance is set up. Its API is described at <a href="/docs/">/docs</a>.</p>{{end}}
</body></html>
`))
}
