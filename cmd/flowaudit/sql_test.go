package main

import (
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

func TestSQL(t *testing.T) {
	c := &collector{run: []*flowauditv1.RunResponse{{Columns: []string{"n"}, Types: []string{"int"}, Rows: []*structpb.ListValue{row(t, 3.0)}}}}
	r := flowaudit(t, c, nil, "sql", " SELECT count(*) AS n FROM flows\n", "--max-rows", "7", "-o", "csv")
	if r.code != exitOK || r.stdout != "n\n3\n" || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	if c.asked.GetQuery() != "SELECT count(*) AS n FROM flows" || c.asked.GetMaxRows() != 7 {
		t.Errorf("asked %v", c.asked)
	}
	c = &collector{err: status.Error(codes.InvalidArgument, "there is no table \"flow\"")}
	if r := flowaudit(t, c, nil, "sql", "SELECT 1 FROM flow"); r.code != exitUsage || !strings.Contains(r.stderr, "there is no table") {
		t.Errorf("%+v", r)
	}
}

// TestParquet reads back what is written: types, order and what is absent.
func TestParquet(t *testing.T) {
	answer := []*flowauditv1.RunResponse{
		{
			Columns: []string{"namespace", "port", "share", "last_seen", "yes"}, Types: []string{"string", "int", "float", "time", "bool"},
			Rows: []*structpb.ListValue{row(t, "shop", 3306.0, 0.25, "2026-03-01T11:00:00.5Z", true)},
		},
		{Rows: []*structpb.ListValue{row(t, nil, nil, nil, nil, nil)}},
	}
	r := flowaudit(t, &collector{run: answer}, nil, "query", "denied-by-port", "-o", "parquet")
	if r.code != exitOK {
		t.Fatalf("%+v", r)
	}
	type line struct {
		Namespace *string    `parquet:"namespace"`
		Port      *int64     `parquet:"port"`
		Share     *float64   `parquet:"share"`
		LastSeen  *time.Time `parquet:"last_seen,timestamp(millisecond)"`
		Yes       *bool      `parquet:"yes"`
	}
	lines, err := parquet.Read[line](strings.NewReader(r.stdout), int64(len(r.stdout)))
	if err != nil || len(lines) != 2 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	l := lines[0]
	if *l.Namespace != "shop" || *l.Port != 3306 || *l.Share != 0.25 || !l.LastSeen.Equal(time.Date(2026, 3, 1, 11, 0, 0, 5e8, time.UTC)) || !*l.Yes {
		t.Errorf("line %+v", l)
	}
	if lines[1] != (line{}) {
		t.Errorf("what is absent came as %+v", lines[1])
	}
	for what, types := range map[string][]string{"the types are missing": nil, "a value of another type": {"int", "int", "float", "time", "bool"}} {
		answer[0].Types = types
		if r := flowaudit(t, &collector{run: answer}, nil, "query", "denied-by-port", "-o", "parquet"); r.code != exitError || r.stderr == "" {
			t.Errorf("%s: %+v", what, r)
		}
	}
}
