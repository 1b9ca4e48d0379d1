package access

import (
	"context"
	"errors"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/flow"
)

// Need is what a method asks of whoever calls it. A method whose need is not
// known is refused.
type Need uint8

// The needs.
const (
	NeedUnknown Need = iota
	NeedProof        // to be known: it tells nothing of flows
	NeedSight        // to see something: it answers what shows
	NeedAll          // to see everything
	NeedWrite        // to see everything, and to be allowed to change alerts everywhere
)

// Gate lets readers in.
type Gate struct {
	// Needs are those of the methods, by their full names.
	Needs map[string]Need
	// Open lets in whoever calls, and shows them everything.
	Open bool
	// Provers are tried one after the other.
	Provers []Prover
	// Rights are nil where no API server knows them: who is proven sees everything.
	Rights *Rights
	Log    *Log
	// Hint says what to show where nothing was shown.
	Hint string
}

// session is who calls, and what they see.
type session struct {
	gate   *Gate
	reader Reader
	sight  flow.Sight
}

type sessionKey struct{}

func sessionOf(ctx context.Context) *session {
	s, _ := ctx.Value(sessionKey{}).(*session)
	return s
}

// SightOf is what the caller sees; nothing where nobody was let in.
func SightOf(ctx context.Context) flow.Sight {
	if s := sessionOf(ctx); s != nil {
		return s.sight
	}
	return flow.Sight{}
}

// ReaderOf is the caller; false if who calls was not asked.
func ReaderOf(ctx context.Context) (Reader, bool) {
	if s := sessionOf(ctx); s != nil && s.reader.Proof != proofNone {
		return s.reader, true
	}
	return Reader{}, false
}

// Renew is what the caller sees by now: who follows may lose a right meanwhile.
func Renew(ctx context.Context) (flow.Sight, error) {
	s := sessionOf(ctx)
	if s == nil {
		return flow.Sight{}, status.Error(codes.Unauthenticated, "who asks is not known")
	}
	now, err := s.gate.session(ctx)
	if err != nil {
		return flow.Sight{}, err
	}
	if now.sight.Nothing() {
		return flow.Sight{}, s.gate.nothing(&now.reader)
	}
	return now.sight, nil
}

// MayWrite is nil if the caller may change alerts of each of the namespaces;
// without any, of all.
func MayWrite(ctx context.Context, namespaces ...string) error {
	s := sessionOf(ctx)
	switch {
	case s == nil:
		return status.Error(codes.Unauthenticated, "who asks is not known")
	case s.gate.Rights == nil:
		return nil
	}
	may, err := s.gate.Rights.MayWrite(ctx, &s.reader, namespaces...)
	switch {
	case err != nil:
		return unavailable(err)
	case !may:
		return status.Errorf(codes.PermissionDenied, "%s may not change this: that takes the right to %s in all namespaces that it concerns", s.reader.Name, s.gate.Rights.Write)
	}
	return nil
}

const proofNone = "none"

// admit lets a call in, and says in its context who calls.
func (g *Gate) admit(ctx context.Context, method string) (context.Context, error) {
	s, err := g.session(ctx)
	if err != nil {
		return ctx, err
	}
	ctx = context.WithValue(ctx, sessionKey{}, s)
	switch g.Needs[method] {
	case NeedProof:
		return ctx, nil
	case NeedSight:
		if s.sight.Nothing() {
			return ctx, g.nothing(&s.reader)
		}
		return ctx, nil
	case NeedAll, NeedWrite:
		if !s.sight.All() {
			return ctx, g.needsAll(&s.reader, path.Base(method))
		}
		if g.Needs[method] == NeedWrite {
			return ctx, MayWrite(ctx)
		}
		return ctx, nil
	}
	return ctx, status.Error(codes.PermissionDenied, "nobody may ask this")
}

func (g *Gate) session(ctx context.Context) (*session, error) {
	if g.Open {
		return &session{gate: g, reader: Reader{Proof: proofNone}, sight: flow.SeeAll()}, nil
	}
	reader, err := g.prove(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{gate: g, reader: reader, sight: flow.SeeAll()}
	if g.Rights != nil {
		if s.sight, err = g.Rights.Sight(ctx, &reader); err != nil {
			return nil, unavailable(err)
		}
	}
	return s, nil
}

// prove takes the first proof that holds.
func (g *Gate) prove(ctx context.Context) (Reader, error) {
	var problems error
	for _, p := range g.Provers {
		reader, err := p.Prove(ctx)
		switch {
		case err == nil:
			return reader, nil
		case errors.Is(err, ErrUnavailable):
			return Reader{}, unavailable(err)
		case !errors.Is(err, errNothingShown):
			problems = errors.Join(problems, err)
		}
	}
	if problems == nil {
		return Reader{}, status.Error(codes.Unauthenticated, g.Hint)
	}
	return Reader{}, status.Errorf(codes.Unauthenticated, "%v: %s", problems, g.Hint)
}

// unavailable says that nobody could decide, without telling why to who asks. It
// is another code than where the collector cannot be reached.
func unavailable(err error) error {
	switch {
	case errors.Is(err, ErrStarting):
		return status.Error(codes.FailedPrecondition, ErrStarting.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call ended")
	}
	return status.Error(codes.FailedPrecondition, ErrUnavailable.Error()+" about who asks and what they may: ask again in a moment")
}

func (g *Gate) nothing(r *Reader) error {
	return status.Errorf(codes.PermissionDenied, "%s may read no flows: that takes the right to %s, in a namespace (by a RoleBinding) or in all of them (by a ClusterRoleBinding)", r.Name, g.Rights.Read)
}

// needsAll is the refusal of what needs everything.
func (g *Gate) needsAll(r *Reader, what string) error {
	return status.Errorf(codes.PermissionDenied, "%s: this is for readers of the whole cluster, and %s is none: that takes the right to %s in all namespaces (by a ClusterRoleBinding)", what, r.Name, g.Rights.Read)
}

// Refused is the error of a question that needs everything, and why it does.
func Refused(ctx context.Context, why string) error {
	if s := sessionOf(ctx); s != nil && s.gate.Rights != nil {
		return s.gate.needsAll(&s.reader, why)
	}
	return status.Error(codes.PermissionDenied, why+": this is for readers of the whole cluster")
}

// Unary lets calls in that have one answer.
func (g *Gate) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := time.Now()
	admitted, err := g.admit(ctx, info.FullMethod)
	var answer any
	if err == nil {
		answer, err = handler(admitted, req)
	}
	g.Log.ended(admitted, info.FullMethod, req, began, g.Log.rows(answer), err)
	return answer, err
}

// Stream lets calls in whose answer is a stream.
func (g *Gate) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	began := time.Now()
	ctx, err := g.admit(stream.Context(), info.FullMethod)
	watched := &watchedStream{ServerStream: stream, ctx: ctx, log: g.Log, method: info.FullMethod, refused: err}
	if err == nil || sessionOf(ctx) != nil {
		err = handler(srv, watched)
	}
	g.Log.ended(ctx, info.FullMethod, watched.request, began, watched.rows, err)
	return err
}

// watchedStream counts what is sent.
type watchedStream struct {
	grpc.ServerStream
	ctx     context.Context
	log     *Log
	method  string
	refused error // what a reader who is known gets: the log tells what was asked
	request any
	rows    uint64
}

func (s *watchedStream) Context() context.Context { return s.ctx }

func (s *watchedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil && s.request == nil {
		if s.request = m; s.refused != nil {
			return s.refused
		}
		if f, ok := m.(interface{ GetFollow() bool }); ok && f.GetFollow() {
			s.log.began(s.ctx, s.method, m) // it has no end
		}
	}
	return err
}

func (s *watchedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.rows += s.log.rows(m)
	}
	return err
}
