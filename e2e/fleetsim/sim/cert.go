package sim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

// authority issues one certificate for each instance. They share a key: making
// ten thousand would cost more than all handshakes.
type authority struct {
	pem      []byte
	issuer   *x509.Certificate
	key      *ecdsa.PrivateKey
	stranger *x509.Certificate // of the same name and key, and not the same authority
	other    *ecdsa.PrivateKey
	leafKey  *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[leafKey]*tls.Certificate
}

type leafKey struct {
	instance int
	kind     Fault
}

func newAuthority() (*authority, error) {
	a := &authority{leaves: map[leafKey]*tls.Certificate{}}
	for _, key := range []**ecdsa.PrivateKey{&a.key, &a.other, &a.leafKey} {
		var err error
		if *key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
	}
	root := func(name string, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(5, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			return nil, fmt.Errorf("make an authority: %w", err)
		}
		return x509.ParseCertificate(der)
	}
	var err error
	if a.issuer, err = root("Simulated fleet", a.key); err != nil {
		return nil, err
	}
	if a.stranger, err = root("Somebody else", a.other); err != nil {
		return nil, err
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.issuer.Raw})
	return a, nil
}

// leaf returns the certificate of an instance with a fault.
func (a *authority) leaf(i int, f Fault) (*tls.Certificate, error) {
	switch f {
	case Expired, NotYet, Stranger, WrongName, Expiring:
	default:
		f = None
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := leafKey{i, f}
	if known := a.leaves[key]; known != nil {
		return known, nil
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: fmt.Sprintf("sim-%05d", i)},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, 90), IPAddresses: []net.IP{address(i)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	issuer, issuerKey := a.issuer, a.key
	switch f {
	case Expired:
		template.NotBefore, template.NotAfter = now.AddDate(0, 0, -90), now.Add(-24*time.Hour)
	case NotYet:
		template.NotBefore = now.Add(24 * time.Hour)
	case Expiring:
		template.NotAfter = now.Add(3 * 24 * time.Hour)
	case WrongName:
		template.IPAddresses, template.DNSNames = nil, []string{"elsewhere.example.com"}
	case Stranger:
		issuer, issuerKey = a.stranger, a.other
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &a.leafKey.PublicKey, issuerKey)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of instance %d: %w", i, err)
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leafKey}
	a.leaves[key] = c
	return c, nil
}
