package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nameServer answers for the cluster's Services, as a cluster's DNS does. It is
// beside the API server, and kubelets give its address to pods.
type nameServer struct {
	p    *plane
	conn net.PacketConn
	done chan struct{}
}

const serviceDomain = ".svc.cluster.local."

// serveNames answers until it is closed.
func serveNames(p *plane) (*nameServer, error) {
	s := &nameServer{p: p, done: make(chan struct{})}
	err := p.ns.Do(func() (err error) {
		s.conn, err = net.ListenPacket("udp", net.JoinHostPort(apiAddr, "53"))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	go s.serve()
	return s, nil
}

func (s *nameServer) serve() {
	defer close(s.done)
	b := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if answer, err := s.answer(b[:n]); err == nil { // whoever asks nonsense gets nothing
			_, _ = s.conn.WriteTo(answer, from) // it asks again
		}
	}
}

// answer makes the answer to a question.
func (s *nameServer) answer(b []byte) ([]byte, error) {
	var question dnsmessage.Message
	if err := question.Unpack(b); err != nil || len(question.Questions) != 1 {
		return nil, errors.New("not one question")
	}
	q := question.Questions[0]
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: question.ID, Response: true, Authoritative: true, RCode: dnsmessage.RCodeNameError},
		Questions: question.Questions,
	}
	addrs, err := s.lookup(q.Name.String())
	if err == nil {
		answer.RCode = dnsmessage.RCodeSuccess
	}
	for _, a := range addrs {
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 5}
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			answer.Answers = append(answer.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	return answer.Pack()
}

// lookup finds a Service's addresses by its name, NAME.NAMESPACE.svc.cluster.local.
func (s *nameServer) lookup(name string) (all []netip.Addr, err error) {
	parts := strings.Split(strings.TrimSuffix(name, serviceDomain), ".")
	if !strings.HasSuffix(name, serviceDomain) || len(parts) != 2 {
		return nil, errors.New("not a Service's name")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	service, err := s.p.client.CoreV1().Services(parts[1]).Get(ctx, parts[0], metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for _, text := range service.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil { // a headless one has none
			all = append(all, a)
		}
	}
	return all, nil
}

func (s *nameServer) close() error {
	err := s.conn.Close()
	<-s.done
	return err
}
