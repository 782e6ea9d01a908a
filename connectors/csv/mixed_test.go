package csv_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/keboola/agnes-the-ai-analyst/connectors"
	"github.com/keboola/agnes-the-ai-analyst/connectors/csv"
	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

func TestAJSONColumnOfTextAndNumbersIsText(t *testing.T) {
	t.Parallel()
	dir, out := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"films.json": `[{"title":"Alien","tags":["a"],"extra":{"x":1}},{"title":300,"tags":"none","extra":null},{"title":null}]`,
		"README.md":  "# about",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, res, err := connectors.Run(t.Context(), csv.New(csv.Options{Dir: dir}), connectors.Request{}, out, nil)
	if err != nil || len(res.Failed) > 0 {
		t.Fatal(err, res.Failed)
	}
	if len(res.Warnings) > 0 {
		t.Errorf("warnings %v, want none: a README is no data", res.Warnings)
	}
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	table := "read_parquet(" + duck.Literal(filepath.Join(out, "csv", "data", "films.parquet")) + ")"
	var titles int
	var title, tags string
	err = db.QueryRowContext(t.Context(), "SELECT count(*) FILTER (title = 'Alien' OR title = '300'), any_value(typeof(title)), any_value(typeof(tags)) FROM "+table).Scan(&titles, &title, &tags)
	if err != nil || titles != 2 || title != "VARCHAR" || tags != "JSON" {
		t.Errorf("%d titles found by comparing text, types %s and %s, %v; want 2, VARCHAR, JSON", titles, title, tags, err)
	}
	files, err := os.ReadDir(filepath.Join(out, "csv", "data"))
	if err != nil || len(files) != 1 {
		t.Errorf("data/ holds %v, %v, want one file", files, err)
	}
}
