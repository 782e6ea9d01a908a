package query

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keboola/agnes-the-ai-analyst/internal/duck"
)

// driverFunction is one overload as the running driver lists it.
type driverFunction struct {
	name, kind, stability, description, macro string
	params                                    []string
}

func (d driverFunction) table() bool {
	return d.kind == "table" || d.kind == "table_macro" || d.kind == "pragma"
}

func reviewed(t *testing.T) *functions {
	t.Helper()
	f, err := loadFunctions()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func memory(t *testing.T) *sql.DB {
	t.Helper()
	db, err := duck.Open(t.Context(), duck.Memory, duck.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func driverFunctions(t *testing.T, db *sql.DB) []driverFunction {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `
		SELECT DISTINCT lower(function_name), function_type, coalesce(stability, ''), coalesce(description, ''),
		       coalesce(macro_definition, ''), coalesce(array_to_string(parameters, ','), '')
		FROM duckdb_functions() ORDER BY ALL`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var found []driverFunction
	for rows.Next() {
		var d driverFunction
		var params string
		if err := rows.Scan(&d.name, &d.kind, &d.stability, &d.description, &d.macro, &params); err != nil {
			t.Fatal(err)
		}
		d.params = strings.FieldsFunc(params, func(r rune) bool { return r == ',' })
		found = append(found, d)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if len(found) < 500 {
		t.Fatalf("the driver lists %d functions; expected many hundreds", len(found))
	}
	return found
}

func driverVersion(t *testing.T, db *sql.DB) (version string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), `SELECT version()`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	return version
}

func TestEveryFunctionOfTheDriverIsReviewed(t *testing.T) {
	t.Parallel()
	f, db := reviewed(t), memory(t)
	present := map[bool]map[string]bool{false: {}, true: {}}
	var missing []string
	for _, d := range driverFunctions(t, db) {
		if _, _, _, known := f.verdict(d.name, d.table()); !known && !present[d.table()][d.name] {
			missing = append(missing, fmt.Sprintf("%s %s(%s) %s %s %s",
				d.kind, d.name, strings.Join(d.params, ", "), d.stability, d.description, d.macro))
		}
		present[d.table()][d.name] = true
	}
	if len(missing) > 0 {
		t.Errorf("DuckDB %s has %d functions that functions.txt does not review; judge each one and add it to a group:\n\t%s",
			driverVersion(t, db), len(missing), strings.Join(missing, "\n\t"))
	}
	for _, table := range []bool{false, true} {
		for _, name := range slices.Sorted(maps.Keys(f.space(table))) {
			parserMade := f.space(table)[name].name == "parser_made"
			if parserMade == present[table][name] {
				t.Errorf("functions.txt reviews %q (table: %v, parser_made: %v), which DuckDB %s lists: %v",
					name, table, parserMade, driverVersion(t, db), present[table][name])
			}
		}
	}
}

// syntax is what a test wants to know of a statement.
type syntax struct {
	expressions, tableFunctions, columns, tables []string
}

func parse(t *testing.T, db *sql.DB, text string) syntax {
	t.Helper()
	var tree string
	if err := db.QueryRowContext(t.Context(), `SELECT json_serialize_sql(?::VARCHAR)::VARCHAR`, text).Scan(&tree); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	var root map[string]any
	if err := json.Unmarshal([]byte(tree), &root); err != nil {
		t.Fatal(err)
	}
	if root["error"] == true {
		t.Fatalf("%s: %v", text, root["error_message"])
	}
	var s syntax
	s.collect(root)
	return s
}

func (s *syntax) collect(node any) {
	switch n := node.(type) {
	case []any:
		for _, child := range n {
			s.collect(child)
		}
	case map[string]any:
		switch n["type"] {
		case "TABLE_FUNCTION":
			call := n["function"].(map[string]any)
			s.tableFunctions = append(s.tableFunctions, call["function_name"].(string))
			s.collect(call["children"])
			return
		case "BASE_TABLE":
			s.tables = append(s.tables, n["table_name"].(string))
		case "COLUMN_REF":
			for _, name := range n["column_names"].([]any) {
				s.columns = append(s.columns, name.(string))
			}
		}
		if name, ok := n["function_name"].(string); ok {
			s.expressions = append(s.expressions, name)
		}
		for _, child := range n {
			s.collect(child)
		}
	}
}

func TestAllowedMacrosExpandToAllowedFunctionsAndReadNoTable(t *testing.T) {
	t.Parallel()
	f, db := reviewed(t), memory(t)
	checked := 0
	for _, d := range driverFunctions(t, db) {
		if d.macro == "" {
			continue
		}
		if allowed, _, _, _ := f.verdict(d.name, d.table()); !allowed {
			continue
		}
		checked++
		text := d.macro
		if !d.table() {
			text = "SELECT " + text
		}
		s := parse(t, db, text)
		for _, name := range s.expressions {
			if allowed, _, _, _ := f.verdict(name, false); !allowed {
				t.Errorf("the macro %s is allowed but calls %s, which is not: %s", d.name, name, d.macro)
			}
		}
		for _, name := range s.columns {
			// What is no parameter is a bare word like current_user.
			if allowed, _, _, _ := f.verdict(name, false); !allowed && name != "current_timestamp" && !slices.Contains(d.params, name) {
				t.Errorf("the macro %s is allowed but reads %s: %s", d.name, name, d.macro)
			}
		}
		if len(s.tables)+len(s.tableFunctions) > 0 {
			t.Errorf("the macro %s is allowed but reads %v %v: %s", d.name, s.tables, s.tableFunctions, d.macro)
		}
	}
	if checked < 50 {
		t.Errorf("%d allowed macros were checked; expected over 50", checked)
	}
}

func TestFunctionsWithSideEffectsOrContextAreAllowedInFewGroupsOnly(t *testing.T) {
	t.Parallel()
	f, db := reviewed(t), memory(t)
	for _, d := range driverFunctions(t, db) {
		if d.stability == "" || d.stability == "CONSISTENT" {
			continue
		}
		allowed, group, _, _ := f.verdict(d.name, d.table())
		if allowed && !slices.Contains([]string{"clock", "random", "raise", "session_words"}, group) {
			t.Errorf("DuckDB calls %s %s, so it depends on more than its arguments; functions.txt allows it in %q", d.name, d.stability, group)
		}
	}
}

// list_aggregate finds an aggregate by text, where no gate can see it.
func TestAggregatesThatTextCanNameAreHarmless(t *testing.T) {
	t.Parallel()
	f, db := reviewed(t), memory(t)
	for _, d := range driverFunctions(t, db) {
		if d.kind != "aggregate" {
			continue
		}
		if allowed, _, _, _ := f.verdict(d.name, false); allowed {
			continue
		}
		if _, err := db.ExecContext(t.Context(), fmt.Sprintf("SELECT list_aggregate([1], %s)", duck.Literal(d.name))); err == nil {
			t.Errorf("the aggregate %s is denied, but list_aggregate reaches it by name", d.name)
		}
	}
	if _, err := db.ExecContext(t.Context(), `SELECT list_aggregate([1], 'getvariable')`); err == nil {
		t.Error("list_aggregate calls a scalar function by name")
	}
}

// SQL calls some functions without brackets: the syntax tree then shows a
// column, so denying them would be an empty promise.
func TestNoBareWordReachesADeniedFunction(t *testing.T) {
	t.Parallel()
	f, db := reviewed(t), memory(t)
	var reached []string
	for _, name := range slices.Sorted(maps.Keys(f.expressions)) {
		if _, err := db.ExecContext(t.Context(), "SELECT "+duck.Ident(name)); err != nil {
			continue
		}
		reached = append(reached, name)
		if !f.expressions[name].allowed {
			t.Errorf("SELECT %s calls the function without brackets, and it is denied", name)
		}
	}
	want := []string{"current_catalog", "current_date", "current_role", "current_schema", "current_user", "session_user", "user"}
	if diff := cmp.Diff(want, reached); diff != "" {
		t.Errorf("words that call a function (-want +got):\n%s", diff)
	}
}

func TestWhatTheParserMakesOfOrdinarySQLIsAllowed(t *testing.T) {
	t.Parallel()
	f, db := reviewed(t), memory(t)
	seen := map[string]bool{}
	for _, text := range []string{
		`SELECT count(*), count(), count(DISTINCT x), sum(x) FILTER (x > 1) FROM t`,
		`SELECT [1, 2], {'a': 1}, MAP {'a': 1}, ROW(1, 2), (1, 2), ARRAY[1, 2]`,
		`SELECT a[1], a[1:2], a[1:2:1], a[:-:-1], s.f, s['f'], (s).f, m['k']`,
		`SELECT a LIKE 'x', a NOT LIKE 'x', a ILIKE 'x', a NOT ILIKE 'x', a SIMILAR TO 'x', a NOT SIMILAR TO 'x', a GLOB 'x'`,
		`SELECT a LIKE 'x' ESCAPE '$', a NOT LIKE 'x' ESCAPE '$', a ILIKE 'x' ESCAPE '$', a NOT ILIKE 'x' ESCAPE '$'`,
		`SELECT a ~ 'x', a !~ 'x', a ~~ 'x', a !~~ 'x', a ~~* 'x', a !~~* 'x', a ~~~ 'x'`,
		`SELECT a+b, a-b, a*b, a/b, a//b, a%b, a^b, a**b, a&b, a|b, a<<b, a>>b, ~a, -a, +a, a!, @a, a||b`,
		`SELECT a->'x', a->>'x', a @> b, a <@ b, a && b, a <-> b, a <=> b, a ^@ b`,
		`SELECT EXTRACT(year FROM d), EXTRACT('dow' FROM d), date_part(['year', 'month'], d), d AT TIME ZONE 'UTC'`,
		`SELECT position('a' IN b), trim(a), trim(both 'x' from a), trim(leading 'x' from a), trim(trailing from a)`,
		`SELECT substring(a from 1 for 2), substring(a for 2), substring(a from 2)`,
		`SELECT current_date, current_time, current_timestamp, localtime, localtimestamp, current_date(), now(), today()`,
		`SELECT coalesce(a, b), nullif(a, b), ifnull(a, b), greatest(a, b), least(a, b), if(a, b, c), CASE a WHEN 1 THEN 2 ELSE 3 END`,
		`SELECT a IN (1, 2), a IN b, a NOT IN (SELECT 1), EXISTS(SELECT 1), a = ANY(SELECT 1), a = ANY([1]), a <> ALL(SELECT 1), ARRAY(SELECT 1)`,
		`SELECT a BETWEEN 1 AND 2, a IS DISTINCT FROM b, a IS NULL, a NOTNULL, a IS TRUE, a IS NOT FALSE, a IS UNKNOWN`,
		`SELECT [x + 1 FOR x IN l IF x > 1], [x FOR x, i IN l IF i % 2 = 0], list_transform(l, x -> x + 1), list_transform(l, lambda x: x + 1)`,
		`SELECT row_number() OVER (), rank() OVER w, lag(x) OVER w, first_value(x) OVER w, sum(x) OVER w, fill(x) OVER w,
		        nth_value(x, 2) OVER w, lead(x IGNORE NULLS) OVER w, cume_dist() OVER w, dense_rank() OVER w, last_value(x) OVER w,
		        ntile(4) OVER w, percent_rank() OVER w FROM t WINDOW w AS (ORDER BY y)`,
		`SELECT GROUPING(a), GROUPING_ID(a), sum(x) FROM t GROUP BY ROLLUP(a)`,
		`SELECT string_agg(x, ',' ORDER BY x), listagg(x, ','), array_agg(x ORDER BY y) FROM t`,
		`SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x), percentile_disc(0.5) WITHIN GROUP (ORDER BY x), mode() WITHIN GROUP (ORDER BY x) FROM t`,
		`SELECT unnest([1]), unnest(l, recursive := true), generate_subscripts(l, 1)`,
		`SELECT INTERVAL 1 DAY, INTERVAL '1' YEAR, INTERVAL (a) QUARTER, INTERVAL (a) WEEK, INTERVAL (a) HOUR, INTERVAL (a) MINUTE, INTERVAL (a) SECOND,
		        INTERVAL (a) MILLISECOND, INTERVAL (a) MICROSECOND, INTERVAL (a) MONTH, INTERVAL (a) DECADE, INTERVAL (a) CENTURY, INTERVAL (a) MILLENNIUM`,
		`SELECT TRY(x), min(COLUMNS('a.*')), COLUMNS(x -> x LIKE 'a%'), COLUMNS(lambda c: starts_with(c, 'a')), * EXCLUDE (a) REPLACE (a + 1 AS b) FROM t`,
		`SELECT * LIKE 'a%', * GLOB 'x*', * SIMILAR TO 'x' FROM t`,
		`SELECT a COLLATE NOCASE, x.upper().lower(), a.list_transform(x -> x) FROM t ORDER BY a COLLATE de`,
		`SELECT * FROM t, unnest(l), range(3), generate_series(1, 2) WITH ORDINALITY, repeat('x', 2), json_each('{}'), LATERAL (SELECT 1)`,
		`PIVOT t ON y IN (1, 2) USING sum(x) GROUP BY c`,
		`SELECT * FROM t UNPIVOT (v FOR n IN (a, b))`,
		`SUMMARIZE t`,
		`SELECT * FROM t QUALIFY row_number() OVER (PARTITION BY a) = 1`,
		`SELECT x::JSON, TRY_CAST(x AS STRUCT(a INT)), DATE '2020-01-01', '{}'::JSON->'a', (x, y) = (1, 2), (1, 2) IN ((1, 2), (3, 4))`,
	} {
		s := parse(t, db, text)
		for _, name := range s.expressions {
			seen[name] = true
			if allowed, _, _, known := f.verdict(name, false); !allowed {
				t.Errorf("%s\n\tcalls %q: not allowed, known %v", text, name, known)
			}
		}
		for _, name := range s.tableFunctions {
			if allowed, _, _, known := f.verdict(name, true); !allowed {
				t.Errorf("%s\n\treads %q: not allowed, known %v", text, name, known)
			}
		}
	}
	for _, name := range []string{"list_value", "struct_pack", "map", "row", "!~~", "date_part", "timezone", "list_filter", "to_months", "count_star", "unnest", "array_agg"} {
		if !seen[name] {
			t.Errorf("no statement made the parser write %q", name)
		}
	}
}

func TestWhatReachesOutsideTheQueryIsDenied(t *testing.T) {
	t.Parallel()
	f := reviewed(t)
	for _, name := range strings.Fields(`
		__internal_decompress_string combine current_connection_id current_query current_query_id current_schemas current_setting
		current_transaction_id currval finalize format_type get_block_size getvariable has_table_privilege in_search_path
		inet_server_addr json_deserialize_sql json_serialize_plan json_serialize_sql nextval parse_duckdb_log_message
		pg_get_constraintdef pg_get_viewdef pg_has_role pg_sleep remap_struct setseed sleep_ms stats txid_current
		variant_bytes_to_variant variant_extract variant_normalize variant_to_parquet_variant version write_log list_resize`) {
		if allowed, _, reason, known := f.verdict(name, false); allowed || !known || reason == "" {
			t.Errorf("verdict(%q, expression) = allowed %v, known %v, reason %q; want a reasoned denial", name, allowed, known, reason)
		}
	}
	for _, name := range strings.Fields(`
		add_parquet_key arrow_scan arrow_scan_dumb check_peg_parser checkpoint copy_database disable_logging duckdb_columns
		duckdb_connection_count duckdb_databases duckdb_external_file_cache duckdb_extensions duckdb_functions duckdb_log_contexts
		duckdb_logs duckdb_logs_parsed duckdb_memory duckdb_prepared_statements duckdb_secrets duckdb_settings duckdb_table_sample
		duckdb_tables duckdb_temporary_files duckdb_variables duckdb_views enable_logging enable_peg_parser enable_profiling
		force_checkpoint glob histogram histogram_values import_database json_execute_serialized_sql parquet_bloom_probe
		parquet_file_metadata parquet_full_metadata parquet_kv_metadata parquet_metadata parquet_scan parquet_schema
		pragma_database_size pragma_metadata_info pragma_platform pragma_show pragma_storage_info pragma_table_info pragma_user_agent
		pragma_version query query_table read_blob read_csv read_csv_auto read_duckdb read_json read_json_auto read_json_objects
		read_ndjson read_parquet read_text seq_scan sniff_csv sql_auto_complete summary table_info test_all_types
		test_vector_types truncate_duckdb_logs which_secret`) {
		if allowed, _, reason, known := f.verdict(name, true); allowed || !known || reason == "" {
			t.Errorf("verdict(%q, table) = allowed %v, known %v, reason %q; want a reasoned denial", name, allowed, known, reason)
		}
	}
	var allowedInFrom []string
	for name, g := range f.tables {
		if g.allowed {
			allowedInFrom = append(allowedInFrom, name)
		}
	}
	slices.Sort(allowedInFrom)
	want := []string{"generate_series", "json_each", "json_tree", "pg_timezone_names", "range", "repeat", "repeat_row", "unnest"}
	if diff := cmp.Diff(want, allowedInFrom); diff != "" {
		t.Errorf("functions allowed in FROM (-want +got):\n%s", diff)
	}
	// A name is judged by where it stands, and an unknown one is refused.
	for _, tc := range []struct {
		name           string
		table          bool
		allowed, known bool
	}{
		{"histogram", false, true, true},
		{"histogram", true, false, true},
		{"json_each", true, true, true},
		{"json_each", false, false, false},
		{"sum", true, false, false},
		{"postgres_query", true, false, false},
		{"getenv", false, false, false},
		{"", false, false, false},
	} {
		if allowed, _, _, known := f.verdict(tc.name, tc.table); allowed != tc.allowed || known != tc.known {
			t.Errorf("verdict(%q, table %v) = allowed %v, known %v; want %v, %v", tc.name, tc.table, allowed, known, tc.allowed, tc.known)
		}
	}
}

func TestEverydayFunctionsAreAllowed(t *testing.T) {
	t.Parallel()
	f := reviewed(t)
	for _, name := range strings.Fields(`
		abs age any_value approx_count_distinct approx_quantile arg_max arg_min array_agg array_contains array_length array_to_string
		ascii avg base64 bit_and bit_count bool_and bool_or ceil char_length chr concat concat_ws contains corr count count_if
		count_star covar_pop cume_dist current_date date_add date_diff date_part date_sub date_trunc datediff day dayname
		dayofweek dayofyear decode dense_rank element_at encode ends_with epoch epoch_ms error exp first first_value flatten floor
		format formatReadableSize from_base64 gcd gen_random_uuid generate_series greatest group_concat hash hex histogram hour
		instr isfinite isnan jaro_winkler_similarity json_array json_array_length json_contains json_extract json_extract_string
		json_group_array json_group_object json_keys json_merge_patch json_object json_type json_valid kurtosis lag
		last last_day last_value lead least left len length levenshtein list list_aggregate list_append list_concat list_contains
		list_distinct list_filter list_has_any list_reduce list_slice list_sort list_sum list_transform list_value list_zip ln log
		lower lpad ltrim mad make_date make_timestamp map map_entries map_from_entries map_keys map_values max max_by md5
		median min min_by minute mod mode month monthname now nth_value ntile nullif parse_filename percent_rank pi position power
		printf product quantile quantile_cont quantile_disc quarter random range rank regexp_extract regexp_extract_all
		regexp_full_match regexp_matches regexp_replace regexp_split_to_array regr_slope repeat replace reverse right round row
		row_number rpad rtrim second sha256 sign skewness split_part sqrt starts_with stddev stddev_samp strftime string_agg
		string_split strip_accents strlen strpos strptime struct_extract struct_insert struct_pack substr substring sum time_bucket
		timezone to_base64 to_days to_json to_months to_timestamp today translate trim trunc try_strptime typeof unhex unicode
		unnest upper url_decode url_encode uuid var_pop variance week weekofyear weighted_avg xor year yearweek
		+ - * / // % ^ ** || ->> ~~ ~~* !~~ ~~~ & | << >> @> <@`) {
		if allowed, _, _, _ := f.verdict(name, false); !allowed {
			t.Errorf("%s is not allowed", name)
		}
	}
}

func TestTypesInTextNameNoVariant(t *testing.T) {
	t.Parallel()
	f, db := reviewed(t), memory(t)
	for _, name := range []string{"from_json", "from_json_strict", "json_transform", "json_transform_strict"} {
		if allowed, group, _, _ := f.verdict(name, false); !allowed || group != typesInText {
			t.Errorf("verdict(%q) = %v in %q, want allowed in %q", name, allowed, group, typesInText)
		}
	}
	for spec, want := range map[string]bool{
		`"INTEGER"`:                                true,
		`{"a": "INTEGER", "b": ["VARCHAR"]}`:       true,
		`{"variant": "INTEGER"}`:                   true, // a field of that name
		`{"a": {"variant": ["DATE"]}, "b": "INT"}`: true,
		`"VARIANT"`:                                false,
		`"variant[]"`:                              false,
		`{"a": "VARIANT"}`:                         false,
		`{"a": ["Variant"]}`:                       false,
		`{"a": {"b": "STRUCT(c VARIANT)"}}`:        false,
		`{"a": "VARIANT", "a": "INTEGER"}`:         false,
		`{"a": "INTEGER", "b": "\u0056ARIANT"}`:    false,
		`{"a": {}, "b": "VARIANT"}`:                false,
		`{"a": [{}], "b": "VARIANT"}`:              false,
		`[[], {"a": 1}, "VARIANT"]`:                false,
		`{"a": "INTEGER"`:                          false,
		`{"a": "INTEGER",}`:                        false,
		`"INTEGER" "VARIANT"`:                      false,
		``:                                         false,
	} {
		if got := plainTypes(spec); got != want {
			t.Errorf("plainTypes(%s) = %v, want %v", spec, got, want)
		}
	}
	// A function that returns a VARIANT is a way to one that no cast shows.
	rows, err := db.QueryContext(t.Context(), `SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE return_type LIKE '%VARIANT%'`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		if allowed, _, _, _ := f.verdict(name, false); allowed {
			t.Errorf("%s returns a VARIANT and is allowed", name)
		}
	}
	if err := rows.Err(); err != nil || n == 0 {
		t.Errorf("%d functions return a VARIANT, %v; expected some", n, err)
	}
}

func TestNamesAreFoldedAsDuckDBFoldsThem(t *testing.T) {
	t.Parallel()
	f, db := reviewed(t), memory(t)
	if allowed, _, _, _ := f.verdict("KURTOSIS", false); !allowed {
		t.Error("KURTOSIS is not allowed, though kurtosis is")
	}
	if allowed, _, _, known := f.verdict("CURRENT_Setting", false); allowed || !known {
		t.Error("CURRENT_Setting is not judged as current_setting")
	}
	const kelvin = "\u212Aurtosis" // strings.ToLower gives kurtosis
	if allowed, _, _, known := f.verdict(kelvin, false); allowed || known {
		t.Errorf("%q is judged as kurtosis", kelvin)
	}
	if _, err := db.ExecContext(t.Context(), "SELECT "+duck.Ident(kelvin)+"(1)"); err == nil {
		t.Errorf("DuckDB runs %q as kurtosis; foldName must follow it", kelvin)
	}
}

func TestAListThatIsUnfitForReviewIsRefused(t *testing.T) {
	t.Parallel()
	const good = "# Note\n\nallow expression text: Pure.\n\tlower upper\n\trepeat\n"
	for _, tc := range []struct{ name, text, want string }{
		{"a name twice", "allow expression a: R.\n\tx\ndeny expression b: R.\n\tx\ndeny table c: R.\n\ty\n", `"x" is listed twice, in "a" and "b"`},
		{"names out of order", good, `"repeat" stands after "upper"`},
		{"an empty reason", "deny table files:  \n\tglob\n", `"files" has no reason`},
		{"no reason", "deny table files\n\tglob\n", `"files" has no reason`},
		{"an unknown verdict", "permit table files: R.\n\tglob\n", `expected "allow|deny`},
		{"an unknown space", "deny tables files: R.\n\tglob\n", `expected "allow|deny`},
		{"names indented by blanks", "deny table files: R.\n  glob\n", `expected "allow|deny`},
		{"names before a group", "\tglob\n", "names without a group"},
		{"a capital letter", "deny table files: R.\n\tGlob\n", `expected "glob"`},
		{"a group without names", "deny table files: R.\ndeny table logs: R.\n\tlog\n", `"files" has no names`},
		{"a last group without names", "deny table logs: R.\n\tlog\nallow expression files: R.\n", `"files" has no names`},
		{"one name space only", "deny table logs: R.\n\tlog\n", "0 functions of expressions"},
		{"nothing", "", "0 functions of expressions"},
	} {
		if _, err := parseFunctions(tc.text); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %s", tc.name, err, tc.want)
		}
	}
	f, err := parseFunctions("allow expression a: Pure: always.\n\t# + x\ndeny table b: Reads.\n\tx\n")
	if err != nil {
		t.Fatal(err)
	}
	if allowed, group, reason, known := f.verdict("#", false); !allowed || group != "a" || reason != "Pure: always." || !known {
		t.Errorf("verdict(#) = %v, %q, %q, %v", allowed, group, reason, known)
	}
	if allowed, group, _, known := f.verdict("X", true); allowed || group != "b" || !known {
		t.Errorf("verdict(X, table) = %v, %q, %v, want denied by b", allowed, group, known)
	}
}
