// go-smtp as it is measured: its own defaults, a session that accepts, a message that is read and dropped.
//
//	go-smtp PORT plain|tls|auth|lmtp
//
// Written for the version that Debian 12 packages (0.12).
package main

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"os"

	"github.com/emersion/go-smtp"
)

type backend struct{ needAuth bool }

func (b backend) Login(_ *smtp.ConnectionState, _, _ string) (smtp.Session, error) {
	return session{}, nil
}

func (b backend) AnonymousLogin(_ *smtp.ConnectionState) (smtp.Session, error) {
	if b.needAuth {
		return nil, smtp.ErrAuthRequired
	}
	return session{}, nil
}

type session struct{}

func (session) Reset()                                  {}
func (session) Logout() error                           { return nil }
func (session) Mail(_ string, _ smtp.MailOptions) error { return nil }
func (session) Rcpt(_ string) error                     { return nil }

func (session) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

func main() {
	port, mode := os.Args[1], os.Args[2]
	server := smtp.NewServer(backend{needAuth: mode == "auth"})
	server.Domain = "bench.example"
	server.AllowInsecureAuth = mode == "auth"
	server.LMTP = mode == "lmtp"
	server.ErrorLog = log.New(io.Discard, "", 0)
	if mode == "tls" {
		pair, err := tls.LoadX509KeyPair(os.Getenv("BENCH_CERT"), os.Getenv("BENCH_KEY"))
		if err != nil {
			log.Fatal(err)
		}
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.Serve(listener))
}
