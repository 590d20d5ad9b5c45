"""june's decoder and encoder, with real recordings that are made here with PyAV."""

import io
import json
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.audio import AudioFrame, AudioStream
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from june.audio import OpusEncoder, decode, level_speech
from june.errors import AudioError
from june.messages import Pcm
from june.sections import PROJECT_ROOT, AudioSettings

Samples = npt.NDArray[np.int16]
SETTINGS = AudioSettings()
TONE_HZ = 440


def tone(duration_s: float, rate_hz: int, *, amplitude: float = 0.3) -> Samples:
    time_s = np.arange(int(duration_s * rate_hz)) / rate_hz
    return (32_767 * amplitude * np.sin(2 * np.pi * TONE_HZ * time_s)).astype(np.int16)


def speech(duration_s: float, rate_hz: int, *, seed: int = 0) -> Samples:
    """Return a hoarse voice in syllables: four a second, with a pause at the end of every second."""
    time_s = np.arange(int(duration_s * rate_hz)) / rate_hz
    envelope = np.abs(np.sin(2 * np.pi * 2 * time_s)) * (time_s % 1 < 0.75)
    phase = 2 * np.pi * (220 * time_s + 3 * np.sin(2 * np.pi * time_s))
    harmonics = np.arange(1, 20)[:, np.newaxis]
    voice = (np.sin(harmonics * phase + seed) / np.sqrt(harmonics)).sum(axis=0)
    breath = np.random.default_rng(seed).standard_normal(time_s.size) / 20
    samples: Samples = (4_000 * envelope * (voice + breath)).astype(np.int16)
    return samples


def recording(
    container_format: str,
    codec: str,
    rate_hz: int,
    samples: Samples,
    *,
    layout: str = "mono",
    muxer_options: dict[str, str] | None = None,
    with_video: bool = False,
    title: str = "",
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container_format, container_options=muxer_options) as container:
        if title:
            container.metadata["title"] = title
        stream = cast(AudioStream, container.add_stream(codec, rate=rate_hz, options={"strict": "-2"}))
        stream.layout = layout
        if with_video:
            video = container.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
            for _ in range(25):
                container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
            container.mux(video.encode(None))
        frame = AudioFrame.from_ndarray(samples[np.newaxis], "s16", "mono")
        frame.sample_rate = rate_hz
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def wav(
    body: bytes, *, rate_hz: int = 16_000, channels: int = 1, codec: int = 1, bits: int = 16, size: int = -1
) -> bytes:
    frame_bytes = channels * bits // 8
    bytes_per_s = min(rate_hz * frame_bytes, 0xFFFFFFFF)
    chunk = struct.pack("<HHIIHH", codec, channels, rate_hz, bytes_per_s, frame_bytes, bits)
    size = len(body) if size < 0 else size
    header = b"RIFF" + struct.pack("<I", 36 + len(body)) + b"WAVEfmt " + struct.pack("<I", 16)
    return header + chunk + b"data" + struct.pack("<I", size) + body


def opus(duration_s: float = 2) -> bytes:
    return recording("ogg", "libopus", 48_000, tone(duration_s, 48_000))


def mp3_without_tag(rate_hz: int) -> bytes:
    bare = {"id3v2_version": "0", "write_xing": "0"}
    return recording("mp3", "libmp3lame", rate_hz, tone(2, rate_hz), muxer_options=bare)


def many_tracks(n_tracks: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        for stream in [container.add_stream("aac", rate=16_000, layout="mono") for _ in range(n_tracks)]:
            frame = AudioFrame.from_ndarray(tone(1, 16_000)[np.newaxis], "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


ACCEPTED: dict[str, Callable[[], bytes]] = {
    "OGG/Opus": opus,
    "OGG/Vorbis": lambda: recording("ogg", "vorbis", 44_100, tone(2, 44_100), layout="stereo"),
    "OGG/FLAC": lambda: recording("ogg", "flac", 16_000, tone(2, 16_000)),
    "MP3": lambda: recording("mp3", "libmp3lame", 44_100, tone(2, 44_100)),
    "MP3 at 16 kHz, no tag": lambda: mp3_without_tag(16_000),
    "M4A": lambda: recording("ipod", "aac", 44_100, tone(2, 44_100)),
    "fragmented MP4": lambda: recording(
        "mp4", "aac", 48_000, tone(2, 48_000), muxer_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "video note": lambda: recording("mp4", "aac", 44_100, tone(2, 44_100), with_video=True),
    "WAV": lambda: recording("wav", "pcm_s16le", 22_050, tone(2, 22_050)),
    "WAV, A-law": lambda: recording("wav", "pcm_alaw", 8_000, tone(2, 8_000)),
    "WAV, streamed": lambda: wav(tone(2, 16_000).tobytes(), size=0xFFFFFFFF),
    "WAV, size unknown": lambda: wav(tone(2, 16_000).tobytes(), size=0),
    "WAV, 8 channels": lambda: wav(np.repeat(tone(2, 16_000), 8).tobytes(), channels=8),
    "FLAC": lambda: recording("flac", "flac", 96_000, tone(2, 96_000)),
    "WebM/Opus": lambda: recording("webm", "libopus", 48_000, tone(2, 48_000)),
    "WebM, live": lambda: recording("webm", "libopus", 48_000, tone(2, 48_000), muxer_options={"live": "1"}),
    "Matroska/Vorbis": lambda: recording("matroska", "vorbis", 44_100, tone(2, 44_100), layout="stereo"),
    "two OGG streams, chained": lambda: opus(1) + opus(1),
}


def peak_hz(pcm: Pcm) -> float:
    return float(np.abs(np.fft.rfft(pcm)).argmax() * 16_000 / pcm.size)


def refusal(data: bytes, settings: AudioSettings = SETTINGS) -> str:
    with pytest.raises(AudioError) as caught:
        decode(data, settings)
    assert caught.value.stage == "decode"
    assert caught.value.sentence
    return caught.value.code


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("cleanup", [False, True])
def test_a_tone_in_every_accepted_kind_keeps_its_length_and_pitch(kind: str, cleanup: bool) -> None:
    pcm = decode(ACCEPTED[kind](), AudioSettings(cleanup=cleanup))
    assert pcm.dtype == np.float32
    assert pcm.ndim == 1
    assert pcm.size / 16_000 == pytest.approx(2, abs=0.1)
    assert peak_hz(pcm) == pytest.approx(TONE_HZ, abs=2)
    assert 0.2 < np.abs(pcm).max() <= 1


def test_a_tag_of_any_bytes_and_a_cover_picture_do_not_disturb() -> None:
    frames = b"".join(
        name + struct.pack(">IH", len(body), 0) + body  # ID3v2.3
        for name, body in (
            (b"TIT2", b"\3\xff\xfe\x80"),
            (b"APIC", b"\0image/png\0\3\0\x89PNG" + bytes(9_000)),
        )
    )
    pcm = decode(b"ID3\3\0\0" + synchsafe(len(frames)) + frames + mp3_without_tag(16_000), SETTINGS)
    assert pcm.size / 16_000 == pytest.approx(2, abs=0.1)


def ogg_checksum(page: bytes) -> int:
    """Return the CRC of a page whose CRC field is zero (RFC 3533, section 6)."""
    remainder = 0
    for byte in page:
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x04C11DB7 if remainder >> 31 else 0)) & 0xFFFFFFFF
    return remainder


def with_title(recorded: bytes, title: bytes) -> bytes:
    """Return a recording whose title is "x" repeated this many times."""
    assert recorded.count(b"x" * len(title)) >= 1
    retitled = recorded.replace(b"x" * len(title), title)
    if not retitled.startswith(b"OggS"):
        return retitled
    pages = [b"OggS" + rest for rest in retitled.split(b"OggS")[1:]]
    unsigned = [page[:22] + bytes(4) + page[26:] for page in pages]
    return b"".join(page[:22] + struct.pack("<I", ogg_checksum(page)) + page[26:] for page in unsigned)


@pytest.mark.parametrize(
    ("container_format", "codec", "rate_hz"),
    [
        ("ogg", "libopus", 48_000),
        ("mp3", "libmp3lame", 16_000),
        ("ipod", "aac", 16_000),
        ("wav", "pcm_s16le", 16_000),
        ("flac", "flac", 16_000),
        ("matroska", "libopus", 48_000),
    ],
)
def test_a_title_that_is_not_utf_8_does_not_disturb(container_format: str, codec: str, rate_hz: int) -> None:
    title = b"\xff\xfe\x80\xc0\xe2\x82\xed\xa0\x80\xf5\xb1r"
    recorded = recording(container_format, codec, rate_hz, tone(2, rate_hz), title="x" * len(title))
    retitled = with_title(recorded, title)
    with av.open(io.BytesIO(recorded)) as container:
        stream_title = container.streams.audio[0].metadata.get("title")
        assert "x" * len(title) in (container.metadata.get("title"), stream_title)
    assert title in retitled
    pcm = decode(retitled, SETTINGS)
    assert pcm.size == decode(recorded, SETTINGS).size


def test_floats_that_are_no_numbers_never_leave_the_decoder() -> None:
    hostile = np.tile(np.array([np.nan, np.inf, 1e30, -np.inf], np.float32), 8_000)
    pcm = decode(wav(hostile.tobytes(), codec=3, bits=32), SETTINGS)
    assert np.isfinite(pcm).all()
    assert np.abs(pcm).max() <= 1


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("audio_empty", b""),
        ("audio_empty", wav(b"")),
        ("audio_too_short", wav(bytes(2))),
        ("audio_too_short", recording("flac", "flac", 16_000, tone(0.09, 16_000))),
        ("audio_unsupported", b"FORM\0\0\0\0AIFFCOMM" + bytes(100)),
        ("audio_unsupported", recording("adts", "aac", 16_000, tone(1, 16_000))),
        ("audio_unsupported", recording("ipod", "alac", 44_100, tone(1, 44_100))),
        ("audio_unsupported", recording("matroska", "ac3", 48_000, tone(1, 48_000))),
        ("audio_unsupported", wav(bytes(32_000), rate_hz=7_999)),
        ("audio_unsupported", wav(bytes(32_000), rate_hz=192_001)),
        ("audio_unsupported", wav(bytes(32_004), channels=9)),
        ("audio_unsupported", mp3_without_tag(44_100) + mp3_without_tag(16_000)),
        ("audio_unreadable", many_tracks(9)),
        ("audio_unreadable", b"This text is a recording in name only."),
        ("audio_unreadable", b"OggS, says the text."),
        ("audio_unreadable", b"\xff\xfb" + bytes(5_000)),
        ("audio_unreadable", opus()[:2_000]),
        ("audio_unreadable", opus()[:-1]),
        ("audio_unreadable", ACCEPTED["OGG/Vorbis"]()[:-2_000]),
        ("audio_unreadable", ACCEPTED["WAV"]()[:-2_000]),
        ("audio_unreadable", ACCEPTED["FLAC"]()[:-2_000]),
        ("audio_unreadable", ACCEPTED["M4A"]()[:-2_000]),
        ("audio_unreadable", ACCEPTED["fragmented MP4"]()[:-2_000]),
    ],
)
def test_a_bad_recording_is_refused_with_its_code(code: str, data: bytes) -> None:
    assert refusal(data) == code


def test_a_telegram_recording_that_never_flags_its_last_page_is_read() -> None:
    whole = opus(3)
    without_flag = whole[: whole.rfind(b"OggS")]
    assert not without_flag[without_flag.rfind(b"OggS") + 5] & 4
    assert decode(without_flag, SETTINGS).size > 16_000


def test_more_bytes_than_accepted_are_refused() -> None:
    data = opus()
    assert refusal(data, AudioSettings(max_bytes=len(data) - 1)) == "audio_too_large"
    decode(data, AudioSettings(max_bytes=len(data)))


def test_a_recording_longer_than_its_header_says_is_stopped_while_it_is_decoded() -> None:
    lying = bytearray(ACCEPTED["FLAC"]())
    lying[21:26] = bytes([lying[21] & 0xF0, 0, 0, 0, 1])  # STREAMINFO: one sample in all
    assert decode(bytes(lying), SETTINGS).size > 16_000
    assert refusal(bytes(lying), AudioSettings(max_duration_s=1.9)) == "audio_too_long"
    assert refusal(ACCEPTED["WebM, live"](), AudioSettings(max_duration_s=1.9)) == "audio_too_long"


def four_hours_of_silence() -> bytes:
    """Return OGG/Opus with one packet of 20 ms, 720 000 times."""
    silence = recording("ogg", "libopus", 48_000, np.zeros(48_000, np.int16))
    with av.open(io.BytesIO(silence)) as source:
        packet_bytes = bytes([(31 << 3) | 3, 50, *([0] * 50)])  # RFC 6716: code 3, 50 CELT frames of 1 byte
        file = io.BytesIO()
        with av.open(file, "w", format="ogg", container_options={"page_duration": "60000000"}) as container:
            stream = container.add_stream_from_template(source.streams.audio[0])
            for second in range(4 * 3_600):
                packet = av.Packet(packet_bytes)
                packet.pts = packet.dts = second * 48_000
                packet.duration, packet.stream = 48_000, stream
                packet.time_base = Fraction(1, 48_000)
                container.mux(packet)
    return file.getvalue()


def iso_bomb() -> bytes:
    """Return an M4A of 6 kB whose sample table claims 70 million samples of one byte."""
    data = bytearray(recording("ipod", "aac", 44_100, tone(0.5, 44_100)))
    samples = 70_000_000
    for name, values in {
        b"stts": (1, samples, 1_024),
        b"stsc": (1, 1, samples, 1),
        b"stsz": (1, samples),
    }.items():
        fields = data.index(name) + 8
        struct.pack_into(f">{len(values)}I", data, fields, *values)
    return bytes(data)


def synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


def id3_bomb() -> bytes:
    """Return an MP3 whose tag of 400 kB unpacks to 100 MB."""
    text = zlib.compress(b"\0TEST\0" + b"a" * 100_000_000, 1)
    frame = b"TXXX" + synchsafe(len(text) + 4) + b"\0\x09" + synchsafe(100_000_006) + text
    return b"ID3\4\0\0" + synchsafe(len(frame)) + frame + mp3_without_tag(16_000)


MEASURED_DECODE = """
import json, sys, time
from pathlib import Path
from june.audio import decode
from june.errors import AudioError
from june.settings import AudioSettings

def peak_mb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

data = sys.stdin.buffer.read()
peak_before_mb, start_s = peak_mb(), time.process_time()
try:
    decode(data, AudioSettings())
    code = "decoded"
except AudioError as error:
    code = error.code
print(json.dumps([code, time.process_time() - start_s, peak_mb() - peak_before_mb]))
"""


@pytest.mark.parametrize(
    ("code", "hostile"),
    [
        ("audio_unsupported", lambda: wav(bytes(8_900), rate_hz=234_925_124)),
        ("audio_too_long", four_hours_of_silence),
        ("audio_empty", iso_bomb),
        ("decoded", id3_bomb),
    ],
)
def test_a_bomb_costs_under_50_ms_and_50_mb(code: str, hostile: Callable[[], bytes]) -> None:
    # A child's ru_maxrss starts at its parent's; VmHWM does not.
    child = subprocess.run(
        [sys.executable, "-c", MEASURED_DECODE],
        input=hostile(),
        capture_output=True,
        check=True,
        cwd=PROJECT_ROOT,
    )
    refused_with, cpu_s, peak_mb = json.loads(child.stdout)
    assert refused_with == code
    assert cpu_s < 0.05
    assert peak_mb < 50


@pytest.mark.parametrize("kind", ACCEPTED)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(kind: str) -> None:
    draw = random.Random(kind)  # noqa: S311 - reproducible damage, no secret
    whole = ACCEPTED[kind]()
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            at = draw.randrange(len(damaged) if draw.random() < 0.5 else 600)
            length = draw.choice([0, 1, 4])
            damaged[at : at + length] = draw.choice([b"\0" * 4, b"\xff" * 4, draw.randbytes(length)])
        try:
            pcm = decode(bytes(damaged), AudioSettings(max_duration_s=10))
        except AudioError:
            continue
        assert np.abs(pcm).max() <= 1


def test_clean_up_removes_hum_and_lifts_a_quiet_voice() -> None:
    rate_hz, duration_s = 16_000, 4
    hum = np.sin(2 * np.pi * 50 * np.arange(duration_s * rate_hz) / rate_hz)
    samples = (speech(duration_s, rate_hz) / 20 + 100 * hum).astype(np.int16)
    raw, clean = (decode(wav(samples.tobytes()), AudioSettings(cleanup=on)) for on in (False, True))
    assert clean.size == raw.size
    voice, hum_share = [], []
    for pcm in (raw, clean):
        spectrum = np.abs(np.fft.rfft(pcm))
        voice.append(np.linalg.norm(spectrum[80 * duration_s :]))
        hum_share.append(spectrum[50 * duration_s] / voice[-1])
    assert voice[1] > 5 * voice[0]
    assert hum_share[1] < hum_share[0] / 2


def encoded(*sentences: Samples, rate_hz: int = 22_050) -> tuple[bytes, float, bytes]:
    encoder = OpusEncoder(32_000)
    for sentence in sentences:
        encoder.write(sentence, rate_hz)
    voice = encoder.finish()
    return voice.ogg_opus, voice.duration_s, voice.waveform


def test_sentences_are_joined_without_gap_or_click() -> None:
    whole = speech(6, 22_050)
    ogg_opus, duration_s, _ = encoded(whole[:33_333], whole[33_333:40_000], whole[40_000:])
    in_one_piece, _, _ = encoded(whole)
    pcm = decode(ogg_opus, SETTINGS)
    assert duration_s == 6
    assert pcm.size / 16_000 == pytest.approx(6, abs=0.001)
    assert np.array_equal(pcm, decode(in_one_piece, SETTINGS))
    original = decode(wav(whole.tobytes(), rate_hz=22_050), SETTINGS)
    for start in range(0, pcm.size - 16_000, 8_000):
        second = slice(start, start + 16_000)
        assert np.corrcoef(pcm[second], original[second])[0, 1] > 0.9


def test_a_voice_message_is_48_khz_mono_opus_that_ends_with_its_flag() -> None:
    ogg_opus, _, _ = encoded(speech(1.5, 22_050))
    with av.open(io.BytesIO(ogg_opus)) as container:
        stream = container.streams.audio[0]
        assert (container.format.name, stream.codec_context.name) == ("ogg", "opus")
    version, channels, _, rate_hz = struct.unpack_from("<BBHI", ogg_opus, ogg_opus.index(b"OpusHead") + 8)
    assert (version, channels, rate_hz) == (1, 1, 48_000)
    assert ogg_opus[ogg_opus.rfind(b"OggS") + 5] & 4


@pytest.mark.parametrize("n_samples", [1, 440, 441, 442, 5_000])
def test_a_very_short_reply_can_be_decoded(n_samples: int) -> None:
    ogg_opus, duration_s, waveform = encoded(np.full(n_samples, 9_000, np.int16))
    with av.open(io.BytesIO(ogg_opus), "r") as container:
        assert sum(frame.samples for frame in container.decode(container.streams.audio[0])) >= 960
    assert duration_s == n_samples / 22_050
    assert waveform


def test_nothing_written_or_a_second_sample_rate_is_an_error() -> None:
    encoder = OpusEncoder(32_000)
    encoder.write(np.empty(0, np.int16), 22_050)
    with pytest.raises(AudioError, match="no samples") as caught:
        encoder.finish()
    assert (caught.value.stage, caught.value.code) == ("encode", "encode_failed")
    encoder.write(speech(0.2, 22_050), 22_050)
    with pytest.raises(AudioError, match="16000 Hz after 22050 Hz"):
        encoder.write(speech(0.2, 16_000), 16_000)


@pytest.mark.parametrize(("duration_s", "n_bytes"), [(0.05, 1), (2.51, 26), (40, 256)])
def test_the_waveform_has_a_byte_for_each_100_ms_up_to_256(duration_s: float, n_bytes: int) -> None:
    _, _, waveform = encoded(speech(duration_s, 8_000), rate_hz=8_000)
    assert len(waveform) == n_bytes


def test_the_waveform_follows_the_loudness() -> None:
    _, _, waveform = encoded(speech(3, 22_050), np.zeros(22_050, np.int16))
    assert max(waveform) == 255
    assert np.std(list(waveform[:30])) > 30
    assert not any(waveform[30:])


def gated_dbfs(samples: Samples, rate_hz: int) -> float:
    """Return the loudness by BS.1770 without K-weighting, block by block as in the recommendation."""
    block, step = int(0.4 * rate_hz), int(0.1 * rate_hz)
    power = (samples / 32_768) ** 2
    blocks = np.array([power[i : i + block].mean() for i in range(0, power.size - block + 1, step)])
    blocks = blocks[blocks > 10**-7]
    return float(10 * np.log10(blocks[blocks > blocks.mean() / 10].mean()))


def test_loud_and_quiet_sentences_come_out_alike() -> None:
    rate_hz = 22_050
    loudness = []
    for seed, gain in enumerate([0.05, 0.3, 1, 4]):
        loud = np.clip(speech(3, rate_hz, seed=seed) * gain, -32_768, 32_767)
        pause = np.random.default_rng(seed).standard_normal(2 * rate_hz) * np.abs(loud).max() / 200
        sentence = np.concatenate([loud, pause, loud]).astype(np.int16)
        levelled = level_speech(sentence, rate_hz)
        loudness.append(gated_dbfs(levelled, rate_hz))
    assert loudness == pytest.approx([-20] * 4, abs=0.5)


def test_peaks_are_bent_and_never_clipped() -> None:
    sentence = tone(2, 22_050, amplitude=0.02)
    sentence[1_000::2_000], sentence[2_000::2_000] = 9_000, -9_000
    levelled = level_speech(sentence, 22_050)
    upward, downward = levelled[1_000::2_000], levelled[2_000::2_000]
    assert (upward > 16_000).all()
    assert (downward < -16_000).all()
    assert np.abs(levelled.astype(int)).max() < 32_767


def test_what_is_nearly_silent_is_lifted_by_30_db_at_most() -> None:
    faint = (speech(3, 22_050) / 80).astype(np.int16)
    lifted_db = gated_dbfs(level_speech(faint, 22_050), 22_050) - gated_dbfs(faint, 22_050)
    assert lifted_db == pytest.approx(30, abs=0.5)


def test_silence_around_a_sentence_is_cut_to_30_ms() -> None:
    rate_hz = 22_050
    sentence = tone(1, rate_hz)
    silence = np.zeros(rate_hz // 2, np.int16)
    levelled = level_speech(np.concatenate([silence, sentence, silence]), rate_hz)
    assert levelled.size / rate_hz == pytest.approx(1.06, abs=0.02)
    assert not levelled[: int(0.02 * rate_hz)].any()
    assert levelled[int(0.04 * rate_hz) : int(0.06 * rate_hz)].any()


@settings(deadline=None)  # a shared core may be slow
@given(hnp.arrays(np.int16, st.integers(0, 30_000), elements=st.integers(-32_768, 32_767)))
def test_any_samples_are_levelled_without_a_warning(samples: Samples) -> None:
    levelled = level_speech(samples, 22_050)
    assert levelled.dtype == np.int16
    assert levelled.size <= samples.size + 220
    assert level_speech(np.zeros_like(samples), 22_050).size == 0
