package query

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"
	"unsafe"

	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// column writes the values of one column of a chunk as text. A column is
// compiled once from its type and reads DuckDB's vectors in place.
type column struct {
	// load looks at the next chunk's vector.
	load func(v duckdb.Vector)
	// json and csv append the value of a row; null is handled before.
	json func(buf []byte, row int) []byte
	csv  func(buf []byte, row int) []byte

	valid []uint64 // nil: every row is
}

func (c *column) isNull(row int) bool {
	return c.valid != nil && c.valid[row>>6]&(1<<(row&63)) == 0
}

func (c *column) appendJSON(buf []byte, row int) []byte {
	if c.isNull(row) {
		return append(buf, "null"...)
	}
	return c.json(buf, row)
}

// view returns the values of a vector. DuckDB keeps them until the chunk is
// destroyed.
func view[T any](v duckdb.Vector, n int) []T {
	return unsafe.Slice((*T)(duckdb.VectorGetData(v)), n) //nolint:gosec // DuckDB's own memory, in its documented layout
}

func validity(v duckdb.Vector, n int) []uint64 {
	mask := duckdb.VectorGetValidity(v)
	if mask == nil {
		return nil
	}
	return unsafe.Slice((*uint64)(mask), (n+63)/64) //nolint:gosec // DuckDB's own memory, in its documented layout
}

// stringT is DuckDB's string_t: up to 12 bytes lie in it, more lie elsewhere.
type stringT struct {
	length uint32
	inline [4]byte
	ptr    *byte
}

const inlined = 12

func (s *stringT) text() string {
	if s.length <= inlined {
		return unsafe.String(&s.inline[0], int(s.length)) //nolint:gosec // as above
	}
	return unsafe.String(s.ptr, int(s.length)) //nolint:gosec // as above
}

// stringAt reads one string of a vector's data.
func stringAt(data unsafe.Pointer, row int) string {
	return unsafe.Slice((*stringT)(data), row+1)[row].text() //nolint:gosec // DuckDB's own memory, in its documented layout
}

// columnOptions say how values are written.
type columnOptions struct {
	bigIntStrings bool
	csv           bool // outside of lists and structs, text stands without quotes
}

// maxSafe is the largest integer that a JavaScript number holds exactly.
const maxSafe = 1<<53 - 1

func simple[T any](c *column, size func() int, write func(buf []byte, v T) []byte) {
	var data []T
	c.load = func(v duckdb.Vector) {
		data, c.valid = view[T](v, size()), validity(v, size())
	}
	c.json = func(buf []byte, row int) []byte { return write(buf, data[row]) }
	c.csv = c.json
}

// quoted makes a column whose text is bare in CSV and a string in JSON; the
// text needs no escaping.
func quoted[T any](c *column, size func() int, write func(buf []byte, v T) []byte) {
	simple(c, size, write)
	bare := c.csv
	c.json = func(buf []byte, row int) []byte { return append(bare(append(buf, '"'), row), '"') }
}

// compile makes the writer of a type. size gives the number of values in the
// vectors that load will get.
func compile(t duckdb.LogicalType, opt columnOptions, size func() int) (*column, error) {
	c := &column{}
	whole := func(buf []byte, v int64) []byte {
		if opt.bigIntStrings && (v > maxSafe || v < -maxSafe) {
			return append(strconv.AppendInt(append(buf, '"'), v, 10), '"')
		}
		return strconv.AppendInt(buf, v, 10)
	}
	switch id := duckdb.GetTypeId(t); id {
	case duckdb.TypeBoolean:
		simple(c, size, func(buf []byte, v bool) []byte { return strconv.AppendBool(buf, v) })
	case duckdb.TypeTinyInt:
		simple(c, size, func(buf []byte, v int8) []byte { return strconv.AppendInt(buf, int64(v), 10) })
	case duckdb.TypeSmallInt:
		simple(c, size, func(buf []byte, v int16) []byte { return strconv.AppendInt(buf, int64(v), 10) })
	case duckdb.TypeInteger:
		simple(c, size, func(buf []byte, v int32) []byte { return strconv.AppendInt(buf, int64(v), 10) })
	case duckdb.TypeBigInt:
		simple(c, size, whole)
	case duckdb.TypeUTinyInt:
		simple(c, size, func(buf []byte, v uint8) []byte { return strconv.AppendUint(buf, uint64(v), 10) })
	case duckdb.TypeUSmallInt:
		simple(c, size, func(buf []byte, v uint16) []byte { return strconv.AppendUint(buf, uint64(v), 10) })
	case duckdb.TypeUInteger:
		simple(c, size, func(buf []byte, v uint32) []byte { return strconv.AppendUint(buf, uint64(v), 10) })
	case duckdb.TypeUBigInt:
		simple(c, size, func(buf []byte, v uint64) []byte {
			if opt.bigIntStrings && v > maxSafe {
				return append(strconv.AppendUint(append(buf, '"'), v, 10), '"')
			}
			return strconv.AppendUint(buf, v, 10)
		})
	case duckdb.TypeHugeInt, duckdb.TypeUHugeInt:
		simple(c, size, func(buf []byte, v int128) []byte {
			signed := id == duckdb.TypeHugeInt
			if _, hi, lo := v.magnitude(signed); opt.bigIntStrings && (hi > 0 || lo > maxSafe) {
				return append(v.append(append(buf, '"'), signed), '"')
			}
			return v.append(buf, signed)
		})
	case duckdb.TypeFloat:
		simple(c, size, func(buf []byte, v float32) []byte { return appendFloat(buf, float64(v), 32, opt.csv) })
	case duckdb.TypeDouble:
		simple(c, size, func(buf []byte, v float64) []byte { return appendFloat(buf, v, 64, opt.csv) })
	case duckdb.TypeDecimal:
		return c, compileDecimal(c, t, size)
	case duckdb.TypeVarchar:
		compileText(c, size)
	case duckdb.TypeBlob:
		textual(c, size, true, func(buf []byte, s string) []byte { return base64.StdEncoding.AppendEncode(buf, []byte(s)) })
	case duckdb.TypeUUID:
		quoted(c, size, appendUUID)
	case duckdb.TypeDate:
		quoted(c, size, appendDate)
	case duckdb.TypeTime:
		quoted(c, size, func(buf []byte, v int64) []byte { return appendClock(buf, v, 6) })
	case duckdb.TypeTimeNS:
		quoted(c, size, func(buf []byte, v int64) []byte { return appendClock(buf, v, 9) })
	case duckdb.TypeTimeTZ:
		quoted(c, size, appendTimeTZ)
	case duckdb.TypeTimestamp:
		quoted(c, size, func(buf []byte, v int64) []byte { return appendTimestamp(buf, v, 6, "") })
	case duckdb.TypeTimestampTZ:
		quoted(c, size, func(buf []byte, v int64) []byte { return appendTimestamp(buf, v, 6, "Z") })
	case duckdb.TypeTimestampS:
		quoted(c, size, func(buf []byte, v int64) []byte { return appendTimestamp(buf, v, 0, "") })
	case duckdb.TypeTimestampMS:
		quoted(c, size, func(buf []byte, v int64) []byte { return appendTimestamp(buf, v, 3, "") })
	case duckdb.TypeTimestampNS:
		quoted(c, size, func(buf []byte, v int64) []byte { return appendTimestamp(buf, v, 9, "") })
	case duckdb.TypeInterval:
		quoted(c, size, appendInterval)
	case duckdb.TypeSQLNull:
		c.load = func(duckdb.Vector) { c.valid = make([]uint64, (size()+63)/64) }
		c.json = func(buf []byte, _ int) []byte { return append(buf, "null"...) }
		c.csv = func(buf []byte, _ int) []byte { return buf }
	default:
		return c, compileNested(c, id, t, opt, size)
	}
	return c, nil
}

var errType = errors.New("a type that cannot be written")

// int128 is how DuckDB stores HUGEINT, UHUGEINT, UUID and wide decimals.
type int128 struct {
	lower uint64
	upper int64
}

func (v int128) magnitude(signed bool) (negative bool, hi, lo uint64) {
	hi, lo = uint64(v.upper), v.lower
	if !signed || v.upper >= 0 {
		return false, hi, lo
	}
	lo, borrow := bits.Sub64(0, lo, 0)
	hi, _ = bits.Sub64(0, hi, borrow)
	return true, hi, lo
}

func (v int128) append(buf []byte, signed bool) []byte {
	negative, hi, lo := v.magnitude(signed)
	if negative {
		buf = append(buf, '-')
	}
	return appendUint128(buf, hi, lo)
}

func appendUint128(buf []byte, hi, lo uint64) []byte {
	if hi == 0 {
		return strconv.AppendUint(buf, lo, 10)
	}
	const group = 1e19 // the largest power of ten in 64 bits
	above, rest := bits.Div64(hi%group, lo, group)
	buf = appendUint128(buf, hi/group, above)
	buf = append(buf, "0000000000000000000"...)
	for i := len(buf) - 1; rest > 0; i-- {
		buf[i] = byte('0' + rest%10)
		rest /= 10
	}
	return buf
}

func appendUUID(buf []byte, v int128) []byte {
	hi, lo := uint64(v.upper)^(1<<63), v.lower // stored with its first bit flipped, to sort
	return fmt.Appendf(buf, "%08x-%04x-%04x-%04x-%012x", hi>>32, hi>>16&0xffff, hi&0xffff, lo>>48, lo&0xffffffffffff)
}

// appendFloat writes the shortest text that reads back as the same number, as
// encoding/json does. What JSON cannot hold becomes a string there.
func appendFloat(buf []byte, f float64, bits int, bare bool) []byte {
	special := ""
	switch {
	case math.IsNaN(f):
		special = "NaN"
	case math.IsInf(f, 1):
		special = "Infinity"
	case math.IsInf(f, -1):
		special = "-Infinity"
	}
	switch {
	case special == "":
	case bare:
		return append(buf, special...)
	default:
		return append(append(append(buf, '"'), special...), '"')
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(buf, f, format, -1, bits)
}

func compileDecimal(c *column, t duckdb.LogicalType, size func() int) error {
	scale := int(duckdb.DecimalScale(t))
	switch duckdb.DecimalInternalType(t) {
	case duckdb.TypeSmallInt:
		simple(c, size, func(buf []byte, v int16) []byte { return appendDecimal(buf, int64(v), scale) })
	case duckdb.TypeInteger:
		simple(c, size, func(buf []byte, v int32) []byte { return appendDecimal(buf, int64(v), scale) })
	case duckdb.TypeBigInt:
		simple(c, size, func(buf []byte, v int64) []byte { return appendDecimal(buf, v, scale) })
	case duckdb.TypeHugeInt:
		simple(c, size, func(buf []byte, v int128) []byte {
			var digits [40]byte
			return appendPoint(buf, v.append(digits[:0], true), scale)
		})
	default:
		return errType
	}
	return nil
}

func appendDecimal(buf []byte, v int64, scale int) []byte {
	var digits [24]byte
	return appendPoint(buf, strconv.AppendInt(digits[:0], v, 10), scale)
}

// appendPoint writes every digit of the scale, as DuckDB does.
func appendPoint(buf, digits []byte, scale int) []byte {
	if digits[0] == '-' {
		buf, digits = append(buf, '-'), digits[1:]
	}
	if scale == 0 {
		return append(buf, digits...)
	}
	point := len(digits) - scale
	if point <= 0 {
		buf = append(buf, "0."...)
		for range -point {
			buf = append(buf, '0')
		}
		return append(buf, digits...)
	}
	buf = append(buf, digits[:point]...)
	return append(append(buf, '.'), digits[point:]...)
}

// textual makes a column of what DuckDB stores as strings. A string_t is never
// copied: where it holds its text itself, its pointer is no pointer.
func textual(c *column, size func() int, inQuotes bool, write func(buf []byte, s string) []byte) {
	var data []stringT
	c.load = func(v duckdb.Vector) { data, c.valid = view[stringT](v, size()), validity(v, size()) }
	c.csv = func(buf []byte, row int) []byte { return write(buf, data[row].text()) }
	c.json = c.csv
	if inQuotes {
		c.json = func(buf []byte, row int) []byte { return append(write(append(buf, '"'), data[row].text()), '"') }
	}
}

func compileText(c *column, size func() int) {
	var data []stringT
	c.load = func(v duckdb.Vector) { data, c.valid = view[stringT](v, size()), validity(v, size()) }
	c.json = func(buf []byte, row int) []byte { return appendString(buf, data[row].text()) }
	c.csv = func(buf []byte, row int) []byte { return append(buf, data[row].text()...) }
}

const hexDigits = "0123456789abcdef"

// appendString writes a JSON string. DuckDB's text is valid UTF-8.
func appendString(buf []byte, s string) []byte {
	buf = append(buf, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		b := s[i]
		if b >= ' ' && b != '"' && b != '\\' {
			continue
		}
		buf = append(buf, s[start:i]...)
		start = i + 1
		switch b {
		case '"', '\\':
			buf = append(buf, '\\', b)
		case '\n':
			buf = append(buf, '\\', 'n')
		case '\r':
			buf = append(buf, '\\', 'r')
		case '\t':
			buf = append(buf, '\\', 't')
		default:
			buf = append(buf, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&15])
		}
	}
	return append(append(buf, s[start:]...), '"')
}

const (
	dateInfinity      = math.MaxInt32
	timestampInfinity = math.MaxInt64
)

func appendDate(buf []byte, days int32) []byte {
	switch days {
	case dateInfinity:
		return append(buf, "infinity"...)
	case -dateInfinity:
		return append(buf, "-infinity"...)
	}
	return appendYMD(buf, time.Unix(int64(days)*86400, 0).UTC())
}

func appendYMD(buf []byte, t time.Time) []byte {
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		buf = fmt.Appendf(buf, "%+05d", year) // ISO 8601: more than four digits need a sign
	} else {
		buf = append4(buf, year)
	}
	buf = append2(append(buf, '-'), int(month))
	return append2(append(buf, '-'), day)
}

func append2(buf []byte, n int) []byte { return append(buf, byte('0'+n/10), byte('0'+n%10)) }

func append4(buf []byte, n int) []byte { return append2(append2(buf, n/100), n%100) }

// appendClock writes a time of day that counts in units of 10^-digits seconds,
// with as many digits behind the point as it needs.
func appendClock(buf []byte, v int64, digits int) []byte {
	unit := int64(math.Pow10(digits))
	seconds, fraction := v/unit, v%unit
	buf = append2(buf, int(seconds/3600))
	buf = append2(append(buf, ':'), int(seconds/60%60))
	buf = append2(append(buf, ':'), int(seconds%60))
	if fraction == 0 {
		return buf
	}
	buf = append(buf, '.')
	for fraction != 0 {
		unit /= 10
		buf = append(buf, byte('0'+fraction/unit))
		fraction %= unit
	}
	return buf
}

func appendTimeTZ(buf []byte, v uint64) []byte {
	const offsetBits, maxOffset = 24, 16*3600 - 1
	micros := int64(v >> offsetBits)
	offset := maxOffset - int(v&(1<<offsetBits-1))
	buf = appendClock(buf, micros, 6)
	sign := byte('+')
	if offset < 0 {
		sign, offset = '-', -offset
	}
	buf = append2(append(buf, sign), offset/3600)
	buf = append2(append(buf, ':'), offset/60%60)
	if offset%60 != 0 {
		buf = append2(append(buf, ':'), offset%60)
	}
	return buf
}

func appendTimestamp(buf []byte, v int64, digits int, zone string) []byte {
	switch v {
	case timestampInfinity:
		return append(buf, "infinity"...)
	case -timestampInfinity:
		return append(buf, "-infinity"...)
	}
	perDay := 86400 * int64(math.Pow10(digits))
	day, rest := v/perDay, v%perDay
	if rest < 0 {
		day, rest = day-1, rest+perDay
	}
	buf = appendYMD(buf, time.Unix(day*86400, 0).UTC())
	return append(appendClock(append(buf, 'T'), rest, digits), zone...)
}

type interval struct {
	months, days int32
	micros       int64
}

// appendInterval writes an ISO 8601 duration. Months, days and time are kept
// apart, as DuckDB does: a month has no fixed number of days.
func appendInterval(buf []byte, v interval) []byte {
	if v == (interval{}) {
		return append(buf, "PT0S"...)
	}
	buf = append(buf, 'P')
	part := func(n int64, unit byte) {
		if n != 0 {
			buf = append(strconv.AppendInt(buf, n, 10), unit)
		}
	}
	part(int64(v.months/12), 'Y')
	part(int64(v.months%12), 'M')
	part(int64(v.days), 'D')
	if v.micros == 0 {
		return buf
	}
	buf = append(buf, 'T')
	part(v.micros/3_600_000_000, 'H')
	part(v.micros/60_000_000%60, 'M')
	if rest := v.micros % 60_000_000; rest != 0 {
		text := strings.TrimRight(string(appendDecimal(nil, rest, 6)), "0")
		buf = append(append(buf, strings.TrimSuffix(text, ".")...), 'S')
	}
	return buf
}

// appendCSV quotes a field where RFC 4180 asks for it. A NULL is nothing, an
// empty text is "", so that they can be told apart.
func appendCSV(buf []byte, start int, text bool) []byte {
	field := buf[start:]
	needs := text && len(field) == 0
	for i := 0; i < len(field) && !needs; i++ {
		b := field[i]
		needs = b == ',' || b == '"' || b == '\n' || b == '\r'
	}
	if !needs {
		return buf
	}
	copied := string(field)
	buf = append(buf[:start], '"')
	buf = append(buf, strings.ReplaceAll(copied, `"`, `""`)...)
	return append(buf, '"')
}
