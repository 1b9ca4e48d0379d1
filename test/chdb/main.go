// Command chdb gives libchdb, which is today's ClickHouse as a library, an HTTP front for tests.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
)

// main serves as much of ClickHouse's HTTP protocol as its driver for Go uses,
// one query at a time, until it is killed.
func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: chdb LIBRARY DIRECTORY LISTEN-ADDRESS")
		os.Exit(2)
	}
	e, err := openEngine(os.Args[1], os.Args[2])
	if err == nil {
		err = serve(e, os.Args[3])
	}
	fmt.Fprintln(os.Stderr, "chdb:", err)
	os.Exit(1)
}

func serve(e *engine, address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr()) // who started it waits for this
	return http.Serve(l, http.HandlerFunc(e.answer))
}

// engine is an opened libchdb.
type engine struct {
	mu          sync.Mutex
	conn        unsafe.Pointer
	query       func(conn unsafe.Pointer, query unsafe.Pointer, length uint, format string, formatLength uint) unsafe.Pointer
	buffer      func(result unsafe.Pointer) *byte
	length      func(result unsafe.Pointer) uint
	errorOf     func(result unsafe.Pointer) string
	destroy     func(result unsafe.Pointer)
	helloAnswer []byte
}

func openEngine(library, dir string) (*engine, error) {
	lib, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", library, err)
	}
	e := &engine{}
	var connect func(argc int, argv []*byte) *unsafe.Pointer
	purego.RegisterLibFunc(&connect, lib, "chdb_connect")
	purego.RegisterLibFunc(&e.query, lib, "chdb_query_n")
	purego.RegisterLibFunc(&e.buffer, lib, "chdb_result_buffer")
	purego.RegisterLibFunc(&e.length, lib, "chdb_result_length")
	purego.RegisterLibFunc(&e.errorOf, lib, "chdb_result_error")
	purego.RegisterLibFunc(&e.destroy, lib, "chdb_destroy_query_result")
	arguments := [][]byte{[]byte("clickhouse\x00"), []byte("--path=" + dir + "\x00")}
	conn := connect(len(arguments), []*byte{&arguments[0][0], &arguments[1][0]})
	if conn == nil {
		return nil, fmt.Errorf("open %s: no connection", dir)
	}
	e.conn = *conn
	version, err := e.run("SELECT version()", "TSVRaw")
	if err != nil {
		return nil, err
	}
	e.helloAnswer = hello(strings.TrimSpace(string(version)))
	return e, nil
}

// run runs a query; mu must be held, or nobody else be there.
func (e *engine) run(query, format string) ([]byte, error) {
	text := []byte(query)
	r := e.query(e.conn, unsafe.Pointer(unsafe.SliceData(text)), uint(len(text)), format, uint(len(format)))
	if r == nil {
		return nil, fmt.Errorf("no result")
	}
	defer e.destroy(r)
	if s := e.errorOf(r); s != "" {
		return nil, fmt.Errorf("%s", s)
	}
	var out []byte
	if n := e.length(r); n > 0 {
		out = bytes.Clone(unsafe.Slice(e.buffer(r), n))
	}
	return out, nil
}

// mine are the parameters that are no settings of a query.
var mine = [...]string{"database", "default_format", "client_protocol_version", "query", "query_id", "session_id", "compress", "decompress", "enable_http_compression", "wait_end_of_query"}

func (e *engine) answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	parameters := r.URL.Query()
	text, data := parameters.Get("query"), body
	if text == "" {
		text, data = string(body), nil
	}
	if strings.HasPrefix(text, "SELECT displayName()") {
		_, _ = w.Write(e.helloAnswer) // the client may be gone
		return
	}
	out, err := e.ask(parameters, text, data)
	if err != nil {
		w.Header().Set("X-ClickHouse-Exception-Code", "1")
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(out) // the client may be gone
}

// ask runs a query with the rows that it inserts, if it does.
func (e *engine) ask(parameters url.Values, text string, data []byte) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if db := parameters.Get("database"); db != "" {
		if _, err := e.run("USE "+db, "Null"); err != nil {
			return nil, err
		}
	}
	if len(data) > 0 {
		return nil, e.insert(text, data)
	}
	out, err := e.run(text+settingsOf(parameters, text), "Native")
	if err == nil && len(out) == 0 && isSelect(text) {
		return e.columns(text)
	}
	return out, err
}

// insert hands rows over in a file: as part of the text, the library would cut
// them at what looks like its end.
func (e *engine) insert(text string, data []byte) error {
	f, err := os.CreateTemp("", "chdb-insert-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // of the test's
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	head, _, _ := strings.Cut(text, "FORMAT Native")
	_, err = e.run(fmt.Sprintf("%s FROM INFILE '%s' FORMAT Native", head, f.Name()), "Null")
	return err
}

// columns is an answer without rows: the library then writes nothing, where a
// server names the columns.
func (e *engine) columns(text string) ([]byte, error) {
	out, err := e.run("DESCRIBE TABLE ("+text+")", "JSONCompact")
	if err != nil {
		return nil, err
	}
	var described struct {
		Data [][]any `json:"data"`
	}
	if err := json.Unmarshal(out, &described); err != nil {
		return nil, err
	}
	b := binary.AppendUvarint(nil, uint64(len(described.Data)))
	b = append(b, 0)
	for _, column := range described.Data {
		for _, v := range column[:2] { // name, type
			s := fmt.Sprint(v)
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
	}
	return b, nil
}

func isSelect(text string) bool {
	verb, _, _ := strings.Cut(strings.TrimSpace(text), " ")
	return strings.EqualFold(verb, "SELECT") || strings.EqualFold(verb, "WITH")
}

// settingsOf ends a SELECT with the request's settings.
func settingsOf(parameters url.Values, text string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if !slices.Contains(mine[:], name) {
			out = append(out, fmt.Sprintf("%s = '%s'", name, parameters.Get(name)))
		}
	}
	if len(out) == 0 || !isSelect(text) {
		return ""
	}
	return "\nSETTINGS " + strings.Join(out, ", ")
}

// hello answers who the server is, as a block of the newest protocol. It says
// that the server's own is revision 0, in which the library writes blocks.
func hello(version string) []byte {
	var b []byte
	str := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	column := func(name, kind string) {
		str(name)
		str(kind)
		b = append(b, 0) // no serialization of its own
	}
	b = append(b, 1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0) // block info: no overflow, no bucket
	b = append(b, 4, 1)                               // columns, rows
	column("displayName()", "String")
	str("chdb")
	column("version()", "String")
	str(version)
	column("revision()", "UInt32")
	b = append(b, 0, 0, 0, 0)
	column("timezone()", "String")
	str("UTC")
	return b
}
