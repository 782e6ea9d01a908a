package query

import (
	"fmt"
	"math/big"

	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// compileNested makes the writers of lists, structs, maps and the rest. In CSV
// a nested value is its JSON.
func compileNested(c *column, id duckdb.Type, t duckdb.LogicalType, opt columnOptions, size func() int) error {
	var err error
	opt.csv = false
	switch id {
	case duckdb.TypeEnum:
		compileEnum(c, t, size)
		return nil
	case duckdb.TypeBit:
		textual(c, size, true, appendBits)
		return nil
	case duckdb.TypeBigNum:
		textual(c, size, false, appendBigNum)
		return nil
	case duckdb.TypeList, duckdb.TypeMap:
		err = compileList(c, id, t, opt, size)
	case duckdb.TypeArray:
		err = compileArray(c, t, opt, size)
	case duckdb.TypeStruct:
		err = compileStruct(c, t, opt, size)
	case duckdb.TypeUnion:
		err = compileUnion(c, t, opt, size)
	default:
		return fmt.Errorf("%w: number %d", errType, id)
	}
	c.csv = c.json
	return err
}

func compileEnum(c *column, t duckdb.LogicalType, size func() int) {
	names := make([]string, duckdb.EnumDictionarySize(t))
	for i := range names {
		names[i] = duckdb.EnumDictionaryValue(t, duckdb.IdxT(i))
	}
	var index func(row int) int
	c.load = func(v duckdb.Vector) {
		c.valid = validity(v, size())
		switch duckdb.EnumInternalType(t) {
		case duckdb.TypeUTinyInt:
			data := view[uint8](v, size())
			index = func(row int) int { return int(data[row]) }
		case duckdb.TypeUSmallInt:
			data := view[uint16](v, size())
			index = func(row int) int { return int(data[row]) }
		default:
			data := view[uint32](v, size())
			index = func(row int) int { return int(data[row]) }
		}
	}
	c.json = func(buf []byte, row int) []byte { return appendString(buf, names[index(row)]) }
	c.csv = func(buf []byte, row int) []byte { return append(buf, names[index(row)]...) }
}

// appendBits writes a bit string; its first byte counts the padding bits.
func appendBits(buf []byte, data string) []byte {
	if data == "" {
		return buf
	}
	padding := int(data[0])
	for i := padding; i < (len(data)-1)*8; i++ {
		buf = append(buf, '0'+data[1+i/8]>>(7-i%8)&1)
	}
	return buf
}

// appendBigNum writes an integer of any size: a header of three bytes with the
// sign, then the magnitude, all inverted where it is negative.
func appendBigNum(buf []byte, text string) []byte {
	data := []byte(text)
	if len(data) < 4 {
		return append(buf, '0')
	}
	negative := data[0]&0x80 == 0
	if negative {
		for i := range data {
			data[i] = ^data[i]
		}
	}
	b := new(big.Int).SetBytes(data[3:])
	if negative {
		b.Neg(b)
	}
	return b.Append(buf, 10)
}

type listEntry struct{ offset, length uint64 }

func compileList(c *column, id duckdb.Type, t duckdb.LogicalType, opt columnOptions, size func() int) error {
	if id == duckdb.TypeMap {
		return compileMap(c, t, opt, size)
	}
	element := duckdb.ListTypeChildType(t)
	defer duckdb.DestroyLogicalType(&element)
	n := 0
	child, err := compile(element, opt, func() int { return n })
	if err != nil {
		return err
	}
	var entries []listEntry
	c.load = func(v duckdb.Vector) {
		entries, c.valid = view[listEntry](v, size()), validity(v, size())
		n = int(duckdb.ListVectorGetSize(v))
		child.load(duckdb.ListVectorGetChild(v))
	}
	c.json = func(buf []byte, row int) []byte {
		e := entries[row]
		buf = append(buf, '[')
		for i := range e.length {
			if i > 0 {
				buf = append(buf, ',')
			}
			buf = child.appendJSON(buf, int(e.offset+i))
		}
		return append(buf, ']')
	}
	return nil
}

// compileMap writes a map as a list of {"key":…,"value":…}, for its keys may be
// anything and come in order.
func compileMap(c *column, t duckdb.LogicalType, opt columnOptions, size func() int) error {
	keyType, valueType := duckdb.MapTypeKeyType(t), duckdb.MapTypeValueType(t)
	defer duckdb.DestroyLogicalType(&keyType)
	defer duckdb.DestroyLogicalType(&valueType)
	n := 0
	count := func() int { return n }
	key, err := compile(keyType, opt, count)
	if err != nil {
		return err
	}
	value, err := compile(valueType, opt, count)
	if err != nil {
		return err
	}
	var entries []listEntry
	c.load = func(v duckdb.Vector) {
		entries, c.valid = view[listEntry](v, size()), validity(v, size())
		n = int(duckdb.ListVectorGetSize(v))
		pair := duckdb.ListVectorGetChild(v)
		key.load(duckdb.StructVectorGetChild(pair, 0))
		value.load(duckdb.StructVectorGetChild(pair, 1))
	}
	c.json = func(buf []byte, row int) []byte {
		e := entries[row]
		buf = append(buf, '[')
		for i := range e.length {
			if i > 0 {
				buf = append(buf, ',')
			}
			buf = key.appendJSON(append(buf, `{"key":`...), int(e.offset+i))
			buf = append(value.appendJSON(append(buf, `,"value":`...), int(e.offset+i)), '}')
		}
		return append(buf, ']')
	}
	return nil
}

func compileArray(c *column, t duckdb.LogicalType, opt columnOptions, size func() int) error {
	element := duckdb.ArrayTypeChildType(t)
	defer duckdb.DestroyLogicalType(&element)
	length := int(duckdb.ArrayTypeArraySize(t))
	child, err := compile(element, opt, func() int { return size() * length })
	if err != nil {
		return err
	}
	c.load = func(v duckdb.Vector) {
		c.valid = validity(v, size())
		child.load(duckdb.ArrayVectorGetChild(v))
	}
	c.json = func(buf []byte, row int) []byte {
		buf = append(buf, '[')
		for i := range length {
			if i > 0 {
				buf = append(buf, ',')
			}
			buf = child.appendJSON(buf, row*length+i)
		}
		return append(buf, ']')
	}
	return nil
}

func compileStruct(c *column, t duckdb.LogicalType, opt columnOptions, size func() int) error {
	var fields []*column
	var names [][]byte
	for i := range duckdb.StructTypeChildCount(t) {
		ft := duckdb.StructTypeChildType(t, i)
		f, err := compile(ft, opt, size)
		duckdb.DestroyLogicalType(&ft)
		if err != nil {
			return err
		}
		fields = append(fields, f)
		names = append(names, append(appendString(nil, duckdb.StructTypeChildName(t, i)), ':'))
	}
	c.load = func(v duckdb.Vector) {
		c.valid = validity(v, size())
		for i, f := range fields {
			f.load(duckdb.StructVectorGetChild(v, duckdb.IdxT(i)))
		}
	}
	c.json = func(buf []byte, row int) []byte {
		buf = append(buf, '{')
		for i, f := range fields {
			if i > 0 {
				buf = append(buf, ',')
			}
			buf = f.appendJSON(append(buf, names[i]...), row)
		}
		return append(buf, '}')
	}
	return nil
}

// compileUnion writes {"tag": value}. A union is a struct whose first member is
// the tag's index.
func compileUnion(c *column, t duckdb.LogicalType, opt columnOptions, size func() int) error {
	var members []*column
	var names [][]byte
	for i := range duckdb.UnionTypeMemberCount(t) {
		mt := duckdb.UnionTypeMemberType(t, i)
		m, err := compile(mt, opt, size)
		duckdb.DestroyLogicalType(&mt)
		if err != nil {
			return err
		}
		members = append(members, m)
		names = append(names, append(appendString(nil, duckdb.UnionTypeMemberName(t, i)), ':'))
	}
	var tags []uint8
	c.load = func(v duckdb.Vector) {
		c.valid = validity(v, size())
		tags = view[uint8](duckdb.StructVectorGetChild(v, 0), size())
		for i, m := range members {
			m.load(duckdb.StructVectorGetChild(v, duckdb.IdxT(i+1)))
		}
	}
	c.json = func(buf []byte, row int) []byte {
		tag := tags[row]
		buf = append(append(buf, '{'), names[tag]...)
		return append(members[tag].appendJSON(buf, row), '}')
	}
	return nil
}
