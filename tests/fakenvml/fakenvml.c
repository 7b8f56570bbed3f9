/* fake libnvidia-ml.so.1: simulated GPUs for tests. State: text file $FAKE_NVML_STATE, re-read on every query.
 * lines:  driver VERSION | cuda INT | gpu key=val;key=val;...   (keys: name uuid total used util mutil temp power limit mig slices sm procs=pid:bytes,pid:bytes)
 * a GPU with mig=1 has `slices` MIG slices, each with a seventh of its memory and all of its processes
 * build:  cc -O2 -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 fakenvml.c */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
typedef int R; typedef unsigned U; typedef unsigned long long L; typedef void *H;
enum { OK=0, UNINIT=1, INVAL=2, NOTSUP=3, NOTFOUND=6, SMALL=7, VERSION=25 };
#define MAXG 16
#define MAXP 64
typedef struct { char name[96], uuid[96]; L total, used; U util, mutil, temp, power, limit, mig, slices, sm, np; U pid[MAXP]; L pmem[MAXP]; } G;
static __thread G g[MAXG]; static __thread U n; static __thread char drv[80]; static __thread int cuda; static volatile int refs; /* thread-local: ctypes drops the GIL */
static U num(const char *v){ return (U)strtoull(v,0,10); }
static void load(void){
  const char *p=getenv("FAKE_NVML_STATE"); FILE *f=p?fopen(p,"r"):0; char line[8192];
  n=0; strcpy(drv,"580.65.06"); cuda=13000;
  while(f && n<MAXG && fgets(line,sizeof line,f)){
    line[strcspn(line,"\n")]=0;
    if(!strncmp(line,"driver ",7)) snprintf(drv,sizeof drv,"%.79s",line+7);
    else if(!strncmp(line,"cuda ",5)) cuda=atoi(line+5);
    else if(!strncmp(line,"gpu ",4)){ G *d=&g[n]; memset(d,0,sizeof *d); strcpy(d->name,"NVIDIA Fake GPU"); d->total=80ULL<<30; d->limit=700000; d->temp=35; d->power=70000; d->sm=90;
      snprintf(d->uuid,96,"GPU-00000000-0000-0000-0000-%012u",n);
      for(char *s,*t=strtok_r(line+4,";",&s);t;t=strtok_r(0,";",&s)){ char *v=strchr(t,'='); if(!v) continue; *v++=0;
        if(!strcmp(t,"name")) snprintf(d->name,96,"%s",v); else if(!strcmp(t,"uuid")) snprintf(d->uuid,96,"%s",v);
        else if(!strcmp(t,"total")) d->total=strtoull(v,0,10); else if(!strcmp(t,"used")) d->used=strtoull(v,0,10);
        else if(!strcmp(t,"util")) d->util=num(v); else if(!strcmp(t,"mutil")) d->mutil=num(v); else if(!strcmp(t,"temp")) d->temp=num(v);
        else if(!strcmp(t,"power")) d->power=num(v); else if(!strcmp(t,"limit")) d->limit=num(v); else if(!strcmp(t,"mig")) d->mig=num(v); else if(!strcmp(t,"slices")) d->slices=num(v); else if(!strcmp(t,"sm")) d->sm=num(v);
        else if(!strcmp(t,"procs")) for(char *q=v;*q&&d->np<MAXP;){ d->pid[d->np]=(U)strtoul(q,&q,10); d->pmem[d->np++]=*q==':'?strtoull(q+1,&q,10):0; if(*q==',') q++; else break; } }
      n++; } }
  if(f) fclose(f);
  if(!p) for(;n<4;n++){ G *d=&g[n]; memset(d,0,sizeof *d); snprintf(d->name,96,"NVIDIA H100 80GB HBM3"); snprintf(d->uuid,96,"GPU-fa4e0000-0000-4000-8000-%012u",n);
      d->total=85520809984ULL; d->used=(1ULL+n)<<30; d->util=10*n; d->mutil=5*n; d->temp=34+n; d->power=70000+1000*n; d->limit=700000; d->sm=90; }
}
/* a handle: GPU number in the low byte, number of its slice (0: the GPU itself) in the next; both from 1 */
#define SLICE ((U)((size_t)h>>8))
#define DEV G *d; load(); if(!refs) return UNINIT; { size_t i=(size_t)h&255; if(i<1||i>n) return INVAL; d=&g[i-1]; if(SLICE>(d->mig?d->slices:0)) return INVAL; } (void)d;
static R put(char *b,U len,const char *s){ if(strlen(s)+1>len) return SMALL; strcpy(b,s); return OK; }
R nvmlInitWithFlags(U f){ (void)f; refs++; return OK; }  R nvmlInit_v2(void){ refs++; return OK; }  R nvmlInit(void){ refs++; return OK; }
R nvmlShutdown(void){ if(!refs) return UNINIT; refs--; return OK; }
const char *nvmlErrorString(R r){ return r==OK?"Success":r==NOTSUP?"Not Supported":r==INVAL?"Invalid Argument":r==NOTFOUND?"Not Found":r==UNINIT?"Uninitialized":"Error"; }
R nvmlSystemGetDriverVersion(char *b,U l){ load(); return put(b,l,drv); }
R nvmlSystemGetNVMLVersion(char *b,U l){ char t[90]; load(); snprintf(t,90,"13.%s",drv); return put(b,l,t); }
R nvmlSystemGetCudaDriverVersion(int *v){ load(); *v=cuda; return OK; }  R nvmlSystemGetCudaDriverVersion_v2(int *v){ load(); *v=cuda; return OK; }
R nvmlDeviceGetCount_v2(U *c){ load(); if(!refs) return UNINIT; *c=n; return OK; }  R nvmlDeviceGetCount(U *c){ return nvmlDeviceGetCount_v2(c); }
R nvmlDeviceGetHandleByIndex_v2(U i,H *h){ load(); if(i>=n) return INVAL; *h=(H)(size_t)(i+1); return OK; }  R nvmlDeviceGetHandleByIndex(U i,H *h){ return nvmlDeviceGetHandleByIndex_v2(i,h); }
R nvmlDeviceGetHandleByUUID(const char *u,H *h){ load(); for(U i=0;i<n;i++){ if(!strcmp(g[i].uuid,u)){ *h=(H)(size_t)(i+1); return OK; }
  for(U s=1;g[i].mig&&s<=g[i].slices;s++){ char t[120]; snprintf(t,120,"MIG-%.90s-%u",g[i].uuid+4,s-1); if(!strcmp(t,u)){ *h=(H)(size_t)((i+1)|s<<8); return OK; } } } return NOTFOUND; }
R nvmlDeviceGetHandleByPciBusId_v2(const char *u,H *h){ U b=0; load(); if(sscanf(u,"%*x:%x",&b)==1&&b>=1&&b<=n){ *h=(H)(size_t)b; return OK; } return NOTFOUND; }
R nvmlDeviceGetIndex(H h,U *i){ DEV *i=(U)(size_t)h-1; return OK; }  R nvmlDeviceGetMinorNumber(H h,U *i){ return nvmlDeviceGetIndex(h,i); }
R nvmlDeviceGetName(H h,char *b,U l){ DEV char t[128]; snprintf(t,128,SLICE?"%.96s MIG 1g.10gb":"%.96s",d->name); return put(b,l,t); }
R nvmlDeviceGetUUID(H h,char *b,U l){ DEV char t[120]; if(!SLICE) return put(b,l,d->uuid); snprintf(t,120,"MIG-%.90s-%u",d->uuid+4,SLICE-1); return put(b,l,t); }
R nvmlDeviceGetSerial(H h,char *b,U l){ DEV char t[32]; snprintf(t,32,"1650%09u",(U)(size_t)h); return put(b,l,t); }
typedef struct { char legacy[16]; U domain,bus,device,id,sub; char bus_id[32]; } Pci;
R nvmlDeviceGetPciInfo_v3(H h,Pci *p){ DEV memset(p,0,sizeof *p); p->bus=(U)(size_t)h; p->id=0x233010DE; snprintf(p->legacy,16,"0000:%02X:00.0",p->bus); snprintf(p->bus_id,32,"00000000:%02X:00.0",p->bus); return OK; }
typedef struct { L total,freeb,used; } Mem;  typedef struct { U version; L total,reserved,freeb,used; } Mem2;
R nvmlDeviceGetMemoryInfo(H h,Mem *m){ DEV U k=SLICE?7:1; m->total=d->total/k; m->used=d->used/k; m->freeb=m->total-m->used; return OK; }
R nvmlDeviceGetMemoryInfo_v2(H h,Mem2 *m){ DEV if(m->version!=0x02000028) return VERSION; m->total=d->total; m->reserved=0; m->used=d->used; m->freeb=d->total-d->used; return OK; }
R nvmlDeviceGetBAR1MemoryInfo(H h,L *m){ DEV m[0]=128ULL<<30; m[2]=1ULL<<20; m[1]=m[0]-m[2]; return OK; }
R nvmlDeviceGetUtilizationRates(H h,U *u){ DEV if(SLICE) return NOTSUP; u[0]=d->util; u[1]=d->mutil; return OK; }
R nvmlDeviceGetTemperature(H h,U s,U *t){ DEV if(s) return INVAL; *t=d->temp; return OK; }
R nvmlDeviceGetTemperatureV(H h,U *t){ DEV if(t[1]) return INVAL; t[2]=d->temp; return OK; }
R nvmlDeviceGetPowerUsage(H h,U *p){ DEV *p=d->power; return OK; }
R nvmlDeviceGetEnforcedPowerLimit(H h,U *p){ DEV *p=d->limit; return OK; }  R nvmlDeviceGetPowerManagementLimit(H h,U *p){ DEV *p=d->limit; return OK; }
R nvmlDeviceGetFanSpeed(H h,U *p){ DEV (void)p; return NOTSUP; }
R nvmlDeviceGetClockInfo(H h,U t,U *c){ DEV *c=t==2?2619:d->util?1980:345; return OK; }  R nvmlDeviceGetMaxClockInfo(H h,U t,U *c){ DEV *c=t==2?2619:1980; return OK; }
R nvmlDeviceGetPerformanceState(H h,U *p){ DEV *p=d->util?0:8; return OK; }  R nvmlDeviceGetPersistenceMode(H h,U *p){ DEV *p=1; return OK; }
R nvmlDeviceGetDisplayMode(H h,U *p){ DEV *p=0; return OK; }  R nvmlDeviceGetDisplayActive(H h,U *p){ DEV *p=0; return OK; }
R nvmlDeviceGetComputeMode(H h,U *p){ DEV *p=0; return OK; }  R nvmlDeviceGetCudaComputeCapability(H h,int *a,int *b){ DEV *a=d->sm/10; *b=d->sm%10; return OK; }
R nvmlDeviceGetEncoderUtilization(H h,U *a,U *b){ DEV *a=0; *b=167000; return OK; }  R nvmlDeviceGetDecoderUtilization(H h,U *a,U *b){ DEV *a=0; *b=167000; return OK; }
R nvmlDeviceGetTotalEccErrors(H h,U a,U b,L *c){ DEV (void)a;(void)b; *c=0; return OK; }
R nvmlDeviceGetMigMode(H h,U *a,U *b){ DEV if(d->sm<80) return NOTSUP; *a=*b=d->mig; return OK; }
R nvmlDeviceGetMaxMigDeviceCount(H h,U *c){ DEV *c=d->mig?7:0; return OK; }
R nvmlDeviceIsMigDeviceHandle(H h,U *c){ DEV *c=SLICE>0; return OK; }
R nvmlDeviceGetMigDeviceHandleByIndex(H h,U i,H *m){ DEV if(!d->mig||i>=d->slices) return NOTFOUND; *m=(H)(size_t)((size_t)h|(i+1)<<8); return OK; }
R nvmlDeviceGetCpuAffinity(H h,U k,unsigned long *s){ DEV for(U i=0;i<k;i++) s[i]=i?0:3; return OK; }
R nvmlDeviceGetTopologyCommonAncestor(H a,H b,U *l){ *l=((size_t)a-1)/2==((size_t)b-1)/2?10:50; return OK; }
typedef struct { U pid; L mem; U gi,ci; } P3;  typedef struct { U pid; L mem; } P1;
R nvmlDeviceGetComputeRunningProcesses_v3(H h,U *c,P3 *p){ DEV U cap=*c; *c=d->np; if(cap<d->np||(d->np&&!p)) return SMALL;
  for(U i=0;i<d->np;i++) p[i]=(P3){d->pid[i],d->pmem[i],0xFFFFFFFFu,0xFFFFFFFFu}; return OK; }
R nvmlDeviceGetComputeRunningProcesses_v2(H h,U *c,P3 *p){ return nvmlDeviceGetComputeRunningProcesses_v3(h,c,p); }
R nvmlDeviceGetComputeRunningProcesses(H h,U *c,P1 *p){ DEV U cap=*c; *c=d->np; if(cap<d->np||(d->np&&!p)) return SMALL; for(U i=0;i<d->np;i++) p[i]=(P1){d->pid[i],d->pmem[i]}; return OK; }
static R none(H h,U *c){ DEV *c=0; return OK; }
R nvmlDeviceGetGraphicsRunningProcesses_v3(H h,U *c,void *p){ (void)p; return none(h,c); }  R nvmlDeviceGetGraphicsRunningProcesses_v2(H h,U *c,void *p){ (void)p; return none(h,c); }
R nvmlDeviceGetGraphicsRunningProcesses(H h,U *c,void *p){ (void)p; return none(h,c); }  R nvmlDeviceGetMPSComputeRunningProcesses_v3(H h,U *c,void *p){ (void)p; return none(h,c); }
typedef struct { U pid; L ts; U sm,mem,enc,dec; } Samp;
R nvmlDeviceGetProcessUtilization(H h,Samp *s,U *c,L seen){ DEV (void)seen; U cap=*c; *c=d->np; if(!d->np) return NOTFOUND; if(cap<d->np||!s) return SMALL;
  struct timeval t; gettimeofday(&t,0); for(U i=0;i<d->np;i++) s[i]=(Samp){d->pid[i],t.tv_sec*1000000ULL+t.tv_usec,d->util/d->np,d->mutil/d->np,0,0}; return OK; }
R nvmlDeviceGetDriverModel_v2(H h,U *a,U *b){ DEV (void)a;(void)b; return NOTSUP; }  R nvmlDeviceGetDriverModel(H h,U *a,U *b){ return nvmlDeviceGetDriverModel_v2(h,a,b); }
R nvmlDeviceGetPcieThroughput(H h,U c,U *v){ DEV (void)c; *v=d->util*10000; return OK; }
