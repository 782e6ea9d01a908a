package query

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"strings"
	"time"

	"github.com/duckdb/duckdb-go/v2"
)

// jsonValue turns a driver value into one that encoding/json writes without
// loss: numbers keep every digit, dates and times are ISO 8601, not-a-number
// and infinity are text.
func jsonValue(v any, typ string) any {
	switch v := v.(type) {
	case float32:
		return jsonFloat(float64(v), v)
	case float64:
		return jsonFloat(v, v)
	case *big.Int:
		return json.Number(v.String())
	case duckdb.Decimal:
		return json.Number(decimal(v))
	case time.Time:
		return jsonTime(v, typ)
	case duckdb.Interval:
		return map[string]any{"months": v.Months, "days": v.Days, "micros": v.Micros}
	case []byte:
		if typ == "UUID" && len(v) == 16 {
			return fmt.Sprintf("%x-%x-%x-%x-%x", v[:4], v[4:6], v[6:8], v[8:10], v[10:])
		}
		return base64.StdEncoding.EncodeToString(v)
	case duckdb.UUID:
		return v.String()
	case duckdb.Union:
		return map[string]any{v.Tag: jsonValue(v.Value, "")}
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = jsonValue(v[i], strings.TrimSuffix(typ, "[]"))
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k := range v {
			out[k] = jsonValue(v[k], "")
		}
		return out
	case duckdb.OrderedMap:
		keys, values := v.Keys(), v.Values()
		out := make([]map[string]any, len(keys))
		for i := range keys {
			out[i] = map[string]any{"key": jsonValue(keys[i], ""), "value": jsonValue(values[i], "")}
		}
		return out
	default:
		return v
	}
}

// decimal writes every digit of the scale, as DuckDB does; the driver's own
// text drops trailing zeros.
func decimal(d duckdb.Decimal) string {
	if d.Scale == 0 {
		return d.Value.String()
	}
	digits := new(big.Int).Abs(d.Value).String()
	if missing := int(d.Scale) + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	sign := ""
	if d.Value.Sign() < 0 {
		sign = "-"
	}
	point := len(digits) - int(d.Scale)
	return sign + digits[:point] + "." + digits[point:]
}

func jsonFloat(f float64, v any) any {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	default:
		return v
	}
}

func jsonTime(t time.Time, typ string) string {
	switch {
	case typ == "DATE":
		return t.Format(time.DateOnly)
	case typ == "TIME":
		return t.Format("15:04:05.999999")
	case strings.HasSuffix(typ, "WITH TIME ZONE"), typ == "TIMESTAMPTZ":
		return t.UTC().Format("2006-01-02T15:04:05.999999Z")
	default:
		return t.Format("2006-01-02T15:04:05.999999999")
	}
}
