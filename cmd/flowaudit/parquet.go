package main

import (
	"fmt"
	"io"
	"reflect"
	"strconv"
	"time"

	"github.com/parquet-go/parquet-go"
	"google.golang.org/protobuf/types/known/structpb"
)

// newParquetWriter writes a Parquet file whose columns are typed as the
// collector says, each of them optional.
func newParquetWriter(out io.Writer, columns, types []string) (*answerWriter, error) {
	if len(types) != len(columns) {
		return nil, fmt.Errorf("the collector does not say the types of the columns, it may be older than this command: use -o csv")
	}
	fields := make([]reflect.StructField, len(columns))
	for i, name := range columns {
		fields[i] = reflect.StructField{Name: "Column" + strconv.Itoa(i), Type: reflect.PointerTo(goType(types[i])), Tag: parquetTag(name, types[i])}
	}
	row := reflect.StructOf(fields)
	w := parquet.NewWriter(out, parquet.SchemaOf(reflect.New(row).Interface()), parquet.Compression(&parquet.Zstd))
	return &answerWriter{func(values []*structpb.Value) error {
		r := reflect.New(row)
		for i, v := range values {
			if err := setColumn(r.Elem().Field(i), v.AsInterface()); err != nil {
				return fmt.Errorf("write column %s: %w", columns[i], err)
			}
		}
		return w.Write(r.Interface())
	}, w.Close}, nil
}

func goType(columnType string) reflect.Type {
	switch columnType {
	case "int":
		return reflect.TypeFor[int64]()
	case "float":
		return reflect.TypeFor[float64]()
	case "bool":
		return reflect.TypeFor[bool]()
	case "time":
		return reflect.TypeFor[time.Time]()
	}
	return reflect.TypeFor[string]()
}

func parquetTag(name, columnType string) reflect.StructTag {
	tag := name + ",optional"
	if columnType == "time" {
		tag += ",timestamp(millisecond)"
	}
	return reflect.StructTag("parquet:" + strconv.Quote(tag))
}

// setColumn puts a value as it came into a field, which is a pointer; nil stays nil.
func setColumn(field reflect.Value, v any) error {
	var typed any
	switch x := v.(type) {
	case nil:
		return nil
	case float64:
		typed = x
		if field.Type().Elem().Kind() == reflect.Int64 {
			typed = int64(x)
		}
	case string:
		typed = x
		if field.Type().Elem() == reflect.TypeFor[time.Time]() {
			t, err := time.Parse(time.RFC3339Nano, x)
			if err != nil {
				return err
			}
			typed = t
		}
	default:
		typed = x
	}
	value := reflect.ValueOf(typed)
	if value.Type() != field.Type().Elem() {
		return fmt.Errorf("a value is a %s, the column a %s", value.Type(), field.Type().Elem())
	}
	field.Set(reflect.New(value.Type()))
	field.Elem().Set(value)
	return nil
}
