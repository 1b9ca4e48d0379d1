// Package rest serves gRPC services as JSON over HTTP, and describes them as OpenAPI.
package rest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// maxRequest bounds a request in bytes.
const maxRequest = 4 << 20

// Service is a gRPC service and who implements it.
type Service struct {
	Desc           *grpc.ServiceDesc
	Implementation any
}

// Interceptors let calls in.
type Interceptors struct {
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
}

// Handler serves the methods of services at POST /v1/NAME, each with the
// request's message as JSON: a unary method answers one message, a method that
// streams one a line. GET does for methods that need nothing. /openapi.json
// describes them. An error is a message with code and message, as HTTP status
// where nothing was sent before it, and else in the last line.
//
// Each call goes through the interceptors, as one of gRPC does: the
// Authorization header is in its metadata, the client's certificate in its peer.
func Handler(by Interceptors, services ...Service) (http.Handler, error) {
	mux := http.NewServeMux()
	var methods []protoreflect.MethodDescriptor
	for _, s := range services {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(s.Desc.ServiceName))
		if err != nil {
			return nil, err
		}
		described := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range described.Len() {
			methods = append(methods, described.Get(i))
		}
		for _, m := range s.Desc.Methods {
			mux.Handle(path(m.MethodName), unary{m, s, by.Unary})
		}
		for _, m := range s.Desc.Streams {
			mux.Handle(path(m.StreamName), streaming{m, s, by.Stream})
		}
	}
	description, err := openAPI(methods)
	if err != nil {
		return nil, err
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(description) // the client may be gone
	})
	return mux, nil
}

// path of a method: ListQuestions is /v1/listquestions.
func path(method string) string { return "/v1/" + strings.ToLower(method) }

// read fills a request from a body of JSON; an empty one is the empty message.
func read(r *http.Request, into any) error {
	message, ok := into.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "a request is a %T", into)
	}
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		return status.Errorf(codes.Unimplemented, "want POST with a JSON object, or GET for what needs none")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "read request: %v", err)
	}
	if len(body) > maxRequest {
		return status.Errorf(codes.InvalidArgument, "the request is larger than %d bytes", maxRequest)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if err := protojson.Unmarshal(body, message); err != nil {
		return status.Errorf(codes.InvalidArgument, "read request: %v", err)
	}
	return nil
}

// write sends a message as a line.
func write(w io.Writer, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "an answer is a %T", message)
	}
	line, err := protojson.MarshalOptions{EmitUnpopulated: false}.Marshal(m)
	if err != nil {
		return err
	}
	var compact bytes.Buffer // protojson puts spaces where it likes
	if err := compactJSON(&compact, line); err != nil {
		return err
	}
	compact.WriteByte('\n')
	_, err = w.Write(compact.Bytes())
	return err
}

// fail tells an error; the status is told only where nothing was sent yet.
func fail(w http.ResponseWriter, err error, began bool) {
	s := status.Convert(err)
	if !began {
		w.Header().Set("Content-Type", "application/json")
		if s.Code() == codes.Unauthenticated {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		w.WriteHeader(httpStatus(s.Code()))
	}
	_ = write(w, s.Proto()) // the client may be gone
}

func httpStatus(c codes.Code) int {
	switch c {
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.Unimplemented:
		return http.StatusMethodNotAllowed
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unavailable, codes.FailedPrecondition:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// incoming is the context of a call over gRPC that shows the same.
func incoming(r *http.Request) context.Context {
	md := metadata.MD{}
	if a := r.Header.Values("Authorization"); len(a) > 0 {
		md.Set("authorization", a...)
	}
	p := &peer.Peer{Addr: address(r.RemoteAddr)}
	if r.TLS != nil {
		p.AuthInfo = credentials.TLSInfo{State: *r.TLS, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	}
	return peer.NewContext(metadata.NewIncomingContext(r.Context(), md), p)
}

// address is a client's, as HTTP has it.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

type unary struct {
	grpc.MethodDesc
	Service
	by grpc.UnaryServerInterceptor
}

func (u unary) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := u.Handler(u.Implementation, incoming(r), func(into any) error { return read(r, into) }, u.by)
	if err != nil {
		fail(w, err, false)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = write(w, answer) // the client may be gone
}

type streaming struct {
	grpc.StreamDesc
	Service
	by grpc.StreamServerInterceptor
}

func (s streaming) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	stream := &serverStream{w: w, r: r, ctx: incoming(r)}
	info := &grpc.StreamServerInfo{FullMethod: "/" + s.Desc.ServiceName + "/" + s.StreamName, IsServerStream: true}
	if err := s.by(s.Implementation, stream, info, s.Handler); err != nil && !errors.Is(r.Context().Err(), context.Canceled) {
		fail(w, err, stream.began)
	}
}

// serverStream writes messages as lines. The request is its only message.
type serverStream struct {
	w     http.ResponseWriter
	r     *http.Request
	ctx   context.Context
	mu    sync.Mutex
	read  bool
	began bool
}

func (s *serverStream) SetHeader(metadata.MD) error  { return nil }
func (s *serverStream) SendHeader(metadata.MD) error { return nil }
func (s *serverStream) SetTrailer(metadata.MD)       {}
func (s *serverStream) Context() context.Context     { return s.ctx }

func (s *serverStream) RecvMsg(into any) error {
	if s.read {
		return io.EOF
	}
	s.read = true
	return read(s.r, into)
}

func (s *serverStream) SendMsg(message any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.began {
		s.w.Header().Set("Content-Type", "application/x-ndjson")
		s.began = true
	}
	if err := write(s.w, message); err != nil {
		return err
	}
	return http.NewResponseController(s.w).Flush()
}
