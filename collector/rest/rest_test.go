package rest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// service answers as a test says.
type service struct {
	flowauditv1.UnimplementedQueryServer
	asked map[string]string
	parts []*flowauditv1.RunResponse
	err   error
}

func (s *service) Status(context.Context, *flowauditv1.StatusRequest) (*flowauditv1.StatusResponse, error) {
	return &flowauditv1.StatusResponse{Version: "1", Flows: 1 << 60}, s.err
}

func (s *service) Run(req *flowauditv1.RunRequest, stream flowauditv1.Query_RunServer) error {
	s.asked = req.GetArguments()
	for _, p := range s.parts {
		if err := stream.Send(p); err != nil {
			return err
		}
	}
	return s.err
}

func serve(t *testing.T, s *service) *httptest.Server {
	t.Helper()
	h, err := Handler(passing(), Service{&flowauditv1.Query_ServiceDesc, s})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server
}

func ask(t *testing.T, method, url, body string) (int, string, []string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var lines []string
	for scan := bufio.NewScanner(res.Body); scan.Scan(); {
		lines = append(lines, scan.Text())
	}
	return res.StatusCode, res.Header.Get("Content-Type"), lines
}

func TestAnswers(t *testing.T) {
	s := &service{parts: []*flowauditv1.RunResponse{{Columns: []string{"a"}}, {Coverage: &flowauditv1.Coverage{Since: 5}}}}
	server := serve(t, s)
	code, kind, lines := ask(t, http.MethodGet, server.URL+"/v1/status", "")
	if code != 200 || kind != "application/json" || len(lines) != 1 || lines[0] != `{"version":"1","flows":"1152921504606846976"}` {
		t.Errorf("%d %s %q", code, kind, lines)
	}
	code, kind, lines = ask(t, http.MethodPost, server.URL+"/v1/run", `{"name": "nodes", "arguments": {"since": "1h"}}`)
	if code != 200 || kind != "application/x-ndjson" || len(lines) != 2 || lines[0] != `{"columns":["a"]}` || lines[1] != `{"coverage":{"since":"5"}}` {
		t.Errorf("%d %s %q", code, kind, lines)
	}
	if s.asked["since"] != "1h" {
		t.Errorf("asked %v", s.asked)
	}
}

func TestErrors(t *testing.T) {
	s := &service{err: status.Error(codes.InvalidArgument, "no such question")}
	server := serve(t, s)
	for _, test := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{http.MethodPost, "/v1/run", "{}", 400, `{"code":3,"message":"no such question"}`},
		{http.MethodPost, "/v1/status", "", 400, `{"code":3,"message":"no such question"}`},
		{http.MethodPost, "/v1/run", `{"shoe": 1}`, 400, "shoe"},
		{http.MethodPost, "/v1/run", `{`, 400, "read request"},
		{http.MethodPost, "/v1/run", strings.Repeat(" ", maxRequest+1), 400, "larger than"},
		{http.MethodDelete, "/v1/run", "", 405, "want POST"},
		{http.MethodPost, "/v1/observe", "{}", 405, "Observe not implemented"},
		{http.MethodPost, "/v1/nothing", "{}", 404, "404"},
	} {
		code, _, lines := ask(t, test.method, server.URL+test.path, test.body)
		if code != test.code || len(lines) == 0 || !strings.Contains(lines[0], test.want) {
			t.Errorf("%s %s: %d %q, want %d %q", test.method, test.path, code, lines, test.code, test.want)
		}
	}
	s.parts = []*flowauditv1.RunResponse{{Columns: []string{"a"}}}
	if code, _, lines := ask(t, http.MethodPost, server.URL+"/v1/run", "{}"); code != 200 || len(lines) != 2 || !strings.Contains(lines[1], `"code":3`) {
		t.Errorf("an error after the first part: %d %q", code, lines)
	}
}

// TestOpenAPI: every method is described, and every reference leads somewhere.
func TestOpenAPI(t *testing.T) {
	server := serve(t, &service{})
	res, err := http.Get(server.URL + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		OpenAPI    string         `json:"openapi"`
		Paths      map[string]any `json:"paths"`
		Components struct {
			Schemas map[string]any `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(text, &d); err != nil || d.OpenAPI != "3.1.0" {
		t.Fatal(d.OpenAPI, err)
	}
	desc := flowauditv1.Query_ServiceDesc
	for _, m := range desc.Methods {
		if d.Paths[path(m.MethodName)] == nil {
			t.Errorf("%s is missing", m.MethodName)
		}
	}
	for _, s := range desc.Streams {
		if d.Paths[path(s.StreamName)] == nil {
			t.Errorf("%s is missing", s.StreamName)
		}
	}
	for _, part := range strings.Split(string(text), `"#/components/schemas/`)[1:] {
		if name, _, _ := strings.Cut(part, `"`); d.Components.Schemas[name] == nil {
			t.Errorf("schema %s is missing", name)
		}
	}
	if len(d.Paths) != len(desc.Methods)+len(desc.Streams) || len(d.Components.Schemas) < 10 {
		t.Errorf("%d paths, %d schemas", len(d.Paths), len(d.Components.Schemas))
	}
}

// passing lets everything in.
func passing() Interceptors {
	return Interceptors{
		Unary: func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			return handler(ctx, req)
		},
		Stream: func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return handler(srv, stream)
		},
	}
}
