"""Decoding recordings to PCM and encoding speech to OGG/Opus, with FFmpeg's libraries (PyAV).

A recording may come from a stranger. `decode` checks its size in bytes, its container and codec
(a short list; the first bytes tell the container, so FFmpeg probes no other demuxer and opens
nothing but these bytes), its sample rate and channels, and its length, counted while decoding.
Headers that ask for gigabytes fail: FFmpeg may not allocate more than 32 MiB at once, in the whole
process. The time that 20 MB of very short frames take is not limited here, but by the caller.
"""

import ctypes
import io
import math
import re
import struct
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.audio import AudioFrame, AudioStream
from av.audio.codeccontext import AudioCodecContext
from av.container import InputContainer
from av.error import BlockingIOError as FilterNeedsInputError
from av.error import EOFError as FilterDrainedError
from av.filter import Graph

from june.errors import AudioError
from june.messages import Pcm, Voice
from june.sections import AudioSettings

DECODED_RATE_HZ = 16_000
_MIN_DURATION_S = 0.1
_MIN_RATE_HZ, _MAX_RATE_HZ = 8_000, 192_000
_MAX_CHANNELS = 8

_CONTAINERS = {
    "flac": rb"fLaC",
    "matroska": rb"\x1aE\xdf\xa3",  # WebM too
    "mov": rb".{4}ftyp",  # MP4, M4A
    "mp3": rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]",  # an ID3 tag, or a frame header of layer III
    "ogg": rb"OggS",
    "wav": rb"RIFF.{4}WAVE",
}
"""The first bytes of a file, by FFmpeg's demuxer."""
_OTHER_CONTAINERS = rb"FORM.{4}AIF|RIFF|RF64|#!AMR|caff|FLV|\x30\x26\xb2\x75|\xff[\xf0\xf1\xf8\xf9]"
"""AIFF, AVI, RF64, AMR, CAF, FLV, ASF/WMA and ADTS: recognized, but not accepted."""
_WAV_STREAMED = 0xFFFFFFFF  # the size of a data chunk whose end was unknown when it was written
_CODECS = {
    "aac", "flac", "mp3", "opus", "vorbis",
    "pcm_alaw", "pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_u8",
}  # fmt: skip
_OPEN_OPTIONS = {
    "codec_whitelist": ",".join([*sorted(_CODECS), "mp3float"]),  # names of decoders, not of codecs
    "max_streams": "8",  # each stream may ask for its own tables
    "protocol_whitelist": "none",
}
_METADATA_OPTIONS: dict[str, Any] = (
    {"metadata_encoding": "latin-1"} if av.__version__.startswith("18.") else {}
)
"""Any bytes are valid Latin-1. PyAV 19 has no such option: it escapes each byte that is not UTF-8."""
_CLEANUP_FILTERS = (
    ("highpass", "f=80"),
    ("afftdn", ""),
    # Over 36 clips (quiet, pink and white noise, hum), Whisper tiny.en heard equally well with loudnorm,
    # which takes 170 ms for 10 s of speech instead of 40 ms; dynaudnorm left quiet recordings quiet.
    ("speechnorm", "e=50:r=0.0001"),
)

_OPUS_RATE_HZ = 48_000
_OPUS_OPTIONS = {
    # 10 s of speech take 31 ms, against 76 ms with "voip", at the same size and with a frequency-weighted
    # segmental SNR 3 dB higher: CELT instead of SILK. Level 10, libopus's own, takes a third more.
    "application": "audio",
    "vbr": "constrained",
    "compression_level": "5",
}
_OPUS_FRAME_S = 0.02

# A 2.6 kB MP4 whose tables claim 70 million samples made FFmpeg allocate 2.4 GB, and an ID3 tag unpacked
# to 200 MB; PyAV does not expose this limit. The largest legitimate allocation is speechnorm's 21 MB.
ctypes.CDLL(av.frame.__file__).av_max_alloc(ctypes.c_size_t(32 * 2**20))


def decode(data: bytes, settings: AudioSettings) -> Pcm:
    """Return the samples of a recording: float32 (n_samples,), mono, 16 000 Hz, [-1, 1].

    Reads OGG, WebM/Matroska, MP3, MP4/M4A, WAV and FLAC, and the first audio stream of a video. A
    recording that was cut off is refused if its container shows it: OGG, WAV, MP4 and FLAC. Of MP3 and
    WebM, the part that exists is read.

    Raises:
        AudioError: stage "decode"; the code is audio_empty, audio_too_large, audio_too_long,
            audio_too_short (under 0.1 s), audio_unsupported (a container, codec, sample rate or number
            of channels that is not accepted) or audio_unreadable (not a recording, damaged or cut off).
    """
    if not data:
        raise AudioError("decode", "audio_empty", "the recording has 0 bytes")
    if len(data) > settings.max_bytes:
        detail = f"the recording has {len(data)} bytes, {settings.max_bytes} are accepted"
        raise AudioError("decode", "audio_too_large", detail)
    demuxer = _demuxer(data)
    if (demuxer == "ogg" and _ogg_is_cut(data)) or (demuxer == "wav" and _wav_is_cut(data)):
        raise AudioError("decode", "audio_unreadable", f"the {demuxer} recording is cut off")
    try:
        with av.open(
            io.BytesIO(data),
            "r",
            demuxer,
            container_options=_OPEN_OPTIONS,
            **_METADATA_OPTIONS,
        ) as container:
            return _decode_stream(container, _accepted_stream(container, settings), settings)
    except av.FFmpegError as error:
        detail = f"FFmpeg cannot read the {demuxer} recording: {error.strerror}"
        raise AudioError("decode", "audio_unreadable", detail) from error


def _demuxer(data: bytes) -> str:
    for demuxer, beginning in _CONTAINERS.items():
        if re.match(beginning, data, re.DOTALL):
            return demuxer
    if re.match(_OTHER_CONTAINERS, data, re.DOTALL):
        raise AudioError("decode", "audio_unsupported", "the recording's container is not accepted")
    raise AudioError("decode", "audio_unreadable", "the file is not a recording in a known container")


def _ogg_is_cut(data: bytes) -> bool:
    """Return whether the last page is incomplete (RFC 3533, section 6).

    A missing end-of-stream flag proves nothing: Telegram's own recorders set it only if the last frame is
    shorter than the others.
    """
    header_bytes, longest_page_bytes = 27, 27 + 255 + 255 * 255
    page = data.rfind(b"OggS", max(0, len(data) - longest_page_bytes))
    if page < 0 or page + header_bytes > len(data):
        return True
    body = page + header_bytes + data[page + 26]
    return body + sum(data[page + header_bytes : body]) != len(data)


def _wav_is_cut(data: bytes) -> bool:
    """Return whether the data chunk claims more bytes than the file has."""
    chunk = len(b"RIFF....WAVE")
    for _ in range(64):  # a legitimate file has a handful of chunks
        if chunk + 8 > len(data):
            break
        name, size = struct.unpack_from("<4sI", data, chunk)
        if name == b"data":
            return size != _WAV_STREAMED and bool(chunk + 8 + size > len(data))
        chunk += 8 + size + size % 2
    return False


def _accepted_stream(container: InputContainer, settings: AudioSettings) -> AudioStream:
    # A claimed length that is too long is refused at once; a shorter claim is not trusted.
    if container.duration is not None and container.duration / av.time_base > settings.max_duration_s:
        raise _too_long(settings)
    if not container.streams.audio:
        raise AudioError("decode", "audio_unreadable", "the file holds no audio stream")
    stream = container.streams.audio[0]
    context: AudioCodecContext | None = stream.codec_context
    if context is None or context.codec.canonical_name not in _CODECS:
        raise AudioError("decode", "audio_unsupported", "the recording's codec is not accepted")
    _refuse_shape(context.sample_rate, context.layout.nb_channels)
    return stream


def _refuse_shape(rate_hz: int, channels: int) -> None:
    if not (_MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ and 1 <= channels <= _MAX_CHANNELS):
        detail = f"the recording has {channels} channels at {rate_hz} Hz"
        raise AudioError("decode", "audio_unsupported", detail)


def _too_long(settings: AudioSettings) -> AudioError:
    detail = f"the recording is longer than {settings.max_duration_s:g} s"
    return AudioError("decode", "audio_too_long", detail)


def _decode_stream(container: InputContainer, stream: AudioStream, settings: AudioSettings) -> Pcm:
    pcm = bytearray()
    graph = None
    shape: tuple[int, int, str] | None = None
    duration_s = 0.0
    for frame in container.decode(stream):
        frame_shape = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
        if graph is None:
            _refuse_shape(frame.sample_rate, frame.layout.nb_channels)
            shape = frame_shape
            graph = _resampling_graph(frame, cleanup=settings.cleanup)
        elif frame_shape != shape:
            raise AudioError("decode", "audio_unsupported", "the recording changes its format midway")
        duration_s += frame.samples / frame.sample_rate
        if duration_s > settings.max_duration_s:
            raise _too_long(settings)
        graph.push(frame)
        pcm += _filtered(graph)
    if graph is None or not duration_s:
        raise AudioError("decode", "audio_empty", "the recording holds no samples")
    if duration_s < _MIN_DURATION_S:
        raise AudioError("decode", "audio_too_short", f"the recording lasts {duration_s:.3f} s")
    graph.push(None)
    pcm += _filtered(graph)
    samples = np.frombuffer(pcm, np.int16).astype(np.float32)
    samples /= 32_768
    return samples


def _resampling_graph(frame: AudioFrame, *, cleanup: bool) -> Graph:
    """Return FFmpeg filters that turn frames like this one into int16, mono, 16 000 Hz.

    Integers saturate, whereas a WAV of floats may hold NaN, infinity and values above 1.
    """
    graph = Graph()
    graph.threads = 1
    target = f"sample_rates={DECODED_RATE_HZ}:sample_fmts=s16:channel_layouts=mono"
    filters = [("aformat", target)]
    if cleanup:  # after resampling, where it costs less, and the same for every source
        filters = [*filters, *_CLEANUP_FILTERS, *filters]
    graph.link_nodes(
        graph.add(
            "abuffer",
            sample_rate=str(frame.sample_rate),
            sample_fmt=frame.format.name,
            channel_layout=frame.layout.name,
        ),
        *(graph.add(name, arguments) for name, arguments in filters),
        graph.add("abuffersink"),
    ).configure()
    return graph


def _filtered(graph: Graph) -> bytes:
    """Return the int16 samples that the graph has ready."""
    ready: list[memoryview] = []
    while True:
        try:
            frame = cast(AudioFrame, graph.pull())
        except (FilterNeedsInputError, FilterDrainedError):
            return b"".join(ready)
        ready.append(memoryview(frame.planes[0])[: frame.samples * 2])


class OpusEncoder:
    """Encodes one voice message sentence by sentence: OGG/Opus, 48 000 Hz, mono.

    Successive writes are joined without a gap; write zeros for a pause.

    Args:
        bitrate: bit/s, 6 000 to 128 000.
    """

    def __init__(self, bitrate: int) -> None:
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="ogg")
        self._stream = self._container.add_stream(
            "libopus", rate=_OPUS_RATE_HZ, layout="mono", options=_OPUS_OPTIONS
        )
        self._stream.bit_rate = bitrate
        self._written: list[npt.NDArray[np.int16]] = []
        self._rate_hz = 0

    @property
    def duration_s(self) -> float:
        """Length of the samples written so far, in seconds."""
        return sum(samples.size for samples in self._written) / max(self._rate_hz, 1)

    def write(self, samples: npt.NDArray[np.int16], sample_rate_hz: int) -> None:
        """Encode int16 samples, shape (n_samples,), mono; every write of a message has the same rate.

        Raises:
            AudioError: stage "encode", encode_failed: libopus or the resampler failed.
        """
        if not samples.size:
            return
        if self._written and sample_rate_hz != self._rate_hz:
            detail = f"{sample_rate_hz} Hz after {self._rate_hz} Hz in one voice message"
            raise AudioError("encode", "encode_failed", detail)
        self._rate_hz = sample_rate_hz
        self._written.append(samples)
        for start in range(0, samples.size, sample_rate_hz):  # one second at a time
            self._encode(samples[start : start + sample_rate_hz])

    def finish(self) -> Voice:
        """Finish and return the voice message, whose duration is that of the samples written.

        Nothing can be written afterwards. The waveform has at most 256 bytes, one for each 100 ms or
        longer: the RMS of a chunk, scaled so that the loudest is 255 (Discord's rule).

        Raises:
            AudioError: stage "encode", encode_failed: nothing was written, or the encoder failed.
        """
        if not self._written:
            raise AudioError("encode", "encode_failed", "no samples were written")
        samples, duration_s = np.concatenate(self._written), self.duration_s
        missing = math.ceil(_OPUS_FRAME_S * self._rate_hz) - samples.size
        if missing > 0:  # a message shorter than one frame of Opus cannot be decoded
            self._encode(np.zeros(missing, np.int16))
        self._encode(None)
        self._container.close()
        return Voice(self._file.getvalue(), duration_s, _waveform(samples, duration_s))

    def _encode(self, samples: npt.NDArray[np.int16] | None) -> None:
        frame = None
        if samples is not None:
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples[np.newaxis]), "s16", "mono")
            frame.sample_rate = self._rate_hz
        try:
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:
            detail = f"FFmpeg cannot encode the reply: {error.strerror}"
            raise AudioError("encode", "encode_failed", detail) from error


def _waveform(samples: npt.NDArray[np.int16], duration_s: float) -> bytes:
    chunks = np.array_split(samples, min(256, math.ceil(10 * duration_s)))
    rms = np.sqrt([np.square(chunk, dtype=np.float32).mean() for chunk in chunks])
    return bytes(np.rint(255 * rms / max(rms.max(), 1)).astype(np.uint8))


_WINDOW_S = 0.01
_BLOCK_WINDOWS, _STEP_WINDOWS = 40, 10  # 400 ms, overlapping by 75 %
_ABSOLUTE_GATE_DB = -70.0
_RELATIVE_GATE_DB = -10.0
_TRIM_DB = -50.0  # below the loudest window; the end of an "s" or "t" is at -45
_MARGIN_WINDOWS = 3
_TARGET_DB = -20.0  # Piper's sentences have -18 to -22, so peaks are seldom changed
_MAX_GAIN_DB = 30.0
_KNEE = 0.5  # peaks above -6 dBFS are compressed, so that none reaches full scale


def level_speech(samples: npt.NDArray[np.int16], sample_rate_hz: int) -> npt.NDArray[np.int16]:
    """Return one sentence at a common loudness with a margin of 30 ms: int16 (n_samples,), mono.

    The loudness is that of ITU-R BS.1770-5 (gated mean square over 400 ms blocks that overlap by 75 %,
    gates at -70 dBFS and 10 dB below the first mean). It is brought to -20 dBFS with at most 30 dB of gain.
    K-weighting is left out: the sentences of one voice share a spectrum, so it would shift all of them
    alike, and numpy has no recursive filter. Silence gives an empty array.

    Args:
        samples: int16 (n_samples,), mono.
        sample_rate_hz: the rate of the samples, which is kept.
    """
    window = int(_WINDOW_S * sample_rate_hz)
    speech = samples.astype(np.float32) / 32_768
    windows = np.pad(speech, (0, -speech.size % window)).reshape(-1, window)
    energy = np.einsum("ij,ij->i", windows, windows) / window
    threshold = max(energy.max(initial=0) * _power(_TRIM_DB), _power(_ABSOLUTE_GATE_DB))
    audible = np.flatnonzero(energy >= threshold)
    if not audible.size:
        return np.empty(0, np.int16)
    first, last = max(audible[0] - _MARGIN_WINDOWS, 0), audible[-1] + 1 + _MARGIN_WINDOWS
    speech = speech[first * window : last * window]
    gain_power = min(_power(_TARGET_DB) / _gated_power(energy[first:last]), _power(_MAX_GAIN_DB))
    speech *= math.sqrt(gain_power)
    loud = np.flatnonzero(np.abs(speech) > _KNEE)
    excess = (np.abs(speech[loud]) - _KNEE) / (1 - _KNEE)
    speech[loud] = np.copysign(_KNEE + (1 - _KNEE) * np.tanh(excess), speech[loud])
    return np.rint(speech * 32_767).astype(np.int16)


def _gated_power(energy: npt.NDArray[np.float32]) -> float:
    """Return BS.1770's gated mean square of 10 ms windows; a sentence under 400 ms is one block."""
    total = np.concatenate(([0.0], np.cumsum(energy, dtype=np.float64)))
    length = min(_BLOCK_WINDOWS, energy.size)
    blocks = (total[length::_STEP_WINDOWS] - total[:-length:_STEP_WINDOWS]) / length
    blocks = blocks[blocks >= min(_power(_ABSOLUTE_GATE_DB), blocks.max())]
    return float(blocks[blocks >= blocks.mean() * _power(_RELATIVE_GATE_DB)].mean())


def _power(decibels: float) -> float:
    return float(10 ** (decibels / 10))
