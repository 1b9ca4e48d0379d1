package collector

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/flowaudit/flowaudit/collector/access"
	"github.com/flowaudit/flowaudit/collector/store"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
	"github.com/flowaudit/flowaudit/queries"
)

// Run implements the Query service.
func (q *query) Run(req *flowauditv1.RunRequest, stream flowauditv1.Query_RunServer) error {
	now := time.Now()
	since, err := sinceOf(req, now)
	if err != nil {
		return invalidArgument(err)
	}
	ctx, cancel := context.WithTimeout(stream.Context(), questionTime)
	defer cancel()
	if question, err := queries.Find(req.GetName()); err == nil && question.Whole != "" && !access.SightOf(ctx).All() {
		return access.Refused(ctx, req.GetName()+": "+question.Whole)
	}
	rows, err := q.store.Query(ctx, access.SightOf(ctx), req.GetName(), req.GetArguments())
	switch {
	case err != nil && ctx.Err() != nil && stream.Context().Err() == nil:
		return status.Errorf(codes.InvalidArgument, "the answer took longer than %s: look back less far, by the argument since", questionTime)
	case err != nil:
		return storeError("answer "+req.GetName(), err)
	}
	last, err := sendRows(rows, stream)
	if err != nil {
		return err
	}
	if last.Coverage, err = q.coverage(stream.Context(), since, now); err != nil {
		return err
	}
	return stream.Send(last)
}

const (
	// sqlTime bounds how long somebody's SQL may keep the store busy, and
	// questionTime a named question.
	sqlTime      = 30 * time.Second
	questionTime = 2 * time.Minute
	// sqlRows and sqlText bound what it costs in memory.
	sqlRows = 100_000
	sqlText = 1 << 20
)

// Select implements the Query service.
func (q *query) Select(req *flowauditv1.SelectRequest, stream flowauditv1.Query_SelectServer) error {
	if len(req.GetQuery()) > sqlText {
		return status.Errorf(codes.InvalidArgument, "the SQL is longer than %d bytes", sqlText)
	}
	limit := sqlRows
	if n := req.GetMaxRows(); n > 0 {
		limit = int(min(n, sqlRows))
	}
	ctx, cancel := context.WithTimeout(stream.Context(), sqlTime)
	defer cancel()
	rows, err := q.store.SQL(ctx, access.SightOf(ctx), req.GetQuery(), limit)
	switch {
	case err != nil && ctx.Err() != nil && stream.Context().Err() == nil:
		return status.Errorf(codes.InvalidArgument, "the SQL took longer than %s: narrow it, by start_ms for one", sqlTime)
	case err != nil:
		return storeError("answer SQL", err)
	}
	last, err := sendRows(rows, stream)
	if err != nil {
		return err
	}
	return stream.Send(last)
}

// sendRows sends an answer but for its last message.
func sendRows(rows store.Rows, stream grpc.ServerStreamingServer[flowauditv1.RunResponse]) (last *flowauditv1.RunResponse, err error) {
	last = &flowauditv1.RunResponse{Columns: rows.Columns, Types: columnTypes(rows)}
	for _, r := range rows.Rows {
		list, err := values(r)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "answer: %v", err)
		}
		last.Rows = append(last.Rows, list)
		if len(last.Rows) == answerFlows {
			if err := stream.Send(last); err != nil {
				return nil, err
			}
			last = &flowauditv1.RunResponse{}
		}
	}
	return last, nil
}

// columnTypes names what the columns hold; a column without a value is text.
func columnTypes(rows store.Rows) []string {
	types := make([]string, len(rows.Columns))
	for i := range types {
		types[i] = "string"
		for _, r := range rows.Rows {
			if r[i] == nil {
				continue
			}
			switch r[i].(type) {
			case int64:
				types[i] = "int"
			case float64:
				types[i] = "float"
			case bool:
				types[i] = "bool"
			case time.Time:
				types[i] = "time"
			}
			break
		}
	}
	return types
}

// sinceOf is how far back a question looks; zero if it looks at everything.
func sinceOf(req *flowauditv1.RunRequest, now time.Time) (time.Time, error) {
	question, err := queries.Find(req.GetName())
	if err != nil {
		return time.Time{}, err
	}
	bound, err := question.Bind(req.GetArguments(), now)
	if err != nil {
		return time.Time{}, err
	}
	since, _ := bound["since"].(time.Time) // a question without it looks at everything
	if since.After(now) {
		since = now
	}
	return since, nil
}

// values turns a row into its message: times become RFC 3339 in UTC.
func values(row []any) (*structpb.ListValue, error) {
	out := &structpb.ListValue{Values: make([]*structpb.Value, len(row))}
	for i, v := range row {
		switch x := v.(type) {
		case time.Time:
			v = x.UTC().Format(time.RFC3339Nano)
		case netip.Addr:
			v = x.String()
		}
		value, err := structpb.NewValue(v)
		if err != nil {
			return nil, fmt.Errorf("column %d: %w", i, err)
		}
		out.Values[i] = value
	}
	return out, nil
}
